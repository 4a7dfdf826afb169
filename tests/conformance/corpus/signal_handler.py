import os
import signal
import sys
def on(number, frame):
    print("got", number, frame.f_code.co_name, frame.f_back)
signal.signal(signal.SIGUSR1, on)
os.kill(os.getpid(), signal.SIGUSR1)
signal.signal(signal.SIGALRM, lambda *_: sys.exit(9))
signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.pause()
