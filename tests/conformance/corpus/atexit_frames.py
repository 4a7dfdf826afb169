import atexit
import sys
@atexit.register
def callback():
    print(sys._getframe().f_back)
    atexit.register(print, "registered at exit")
