import sys
def profiler(frame, event, arg):
    sys.stderr.write("%s %s\n" % (event, frame.f_code.co_name))
def f():
    return abs(-1)
sys.setprofile(profiler)
f()
