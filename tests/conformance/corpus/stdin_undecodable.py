# stdin: ab\xff\xfe
import sys
print(ascii(sys.stdin.read()))
