import atexit
import os
import sys
atexit.register(print, "never")
print("never seen")
sys.stderr.write("seen\n")
os._exit(6)
