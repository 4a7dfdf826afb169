# only: main.py
import sys
def count(n):
    try:
        return count(n + 1)
    except RecursionError:
        return n
print(count(0), sys.getrecursionlimit())
def forever():
    forever()
forever()
