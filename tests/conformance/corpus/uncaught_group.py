import sys
if sys.version_info >= (3, 11):
    raise ExceptionGroup("many", [ValueError(1), TypeError("two")])
raise ValueError("no groups")
