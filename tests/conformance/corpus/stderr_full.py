import os
import sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
print("does not fit", file=sys.stderr, end="")
