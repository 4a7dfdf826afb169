import atexit
import os
import signal
atexit.register(print, "at exit")
print("before")
os.kill(os.getpid(), signal.SIGINT)
for _ in range(10**6):
    pass
