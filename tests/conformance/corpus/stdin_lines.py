# stdin: first\nzweite Zeile ü\nlast without end
import sys
print(input("prompt> "))
print(repr(sys.stdin.readline()), repr(sys.stdin.read()))
try:
    input()
except EOFError as error:
    print(error)
