# only: main.py
import atexit
def callback():
    print("__file__" in globals(), "__cached__" in globals(), __name__)
atexit.register(callback)
