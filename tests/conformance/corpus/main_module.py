# args: one "two words" --flag=ü
"""The docstring."""
import __main__
import sys
for key, value in sorted(vars(__main__).items()):
    if key != "__builtins__":
        print(key, type(value).__name__, repr(value))
print(list(globals()))
print(type(__builtins__), __name__, __spec__, __main__ is sys.modules["__main__"])
print(sys.argv, sys.orig_argv)
print(open(__file__).read() == open(sys.argv[0]).read())
