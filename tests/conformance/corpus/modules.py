import sys
print(list(sys.modules))
print([m.__name__ for m in sys.modules.values() if "sandrun" in str(getattr(m, "__file__", ""))])
