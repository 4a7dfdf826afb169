import sys
def tracer(frame, event, arg):
    print(event, frame.f_code.co_name)
class D:
    def __del__(self):
        pass
keep = D()
sys.settrace(tracer)
