# stdin: \x00\x01\xff binary
import sys
print(sys.stdin.buffer.read(3), sys.stdin.buffer.read())
