import os
import sys
import atexit
atexit.register(print, "at exit")
print("before", flush=True)
pid = os.fork()
if pid == 0:
    print("child", flush=True)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
