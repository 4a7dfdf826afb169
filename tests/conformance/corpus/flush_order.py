import os
import sys
os.dup2(2, 1)
print("out 1")
print("err 1", file=sys.stderr)
sys.stdout.buffer.write(b"bytes\n")
print("out 2")
os.write(1, b"direct\n")
