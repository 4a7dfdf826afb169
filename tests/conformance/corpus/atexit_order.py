import atexit
import sys
import threading
atexit.register(lambda: print("first registered", sys.stdout is not None))
atexit.register(lambda: 1 / 0)
@atexit.register
def last():
    print("last registered", threading.active_count())
def work():
    print("thread ends")
threading.Thread(target=work).start()
print("main ends")
