import sys
x: int = 1
print(__annotations__ if sys.version_info < (3, 14) else sys.modules["__main__"].__annotations__)
