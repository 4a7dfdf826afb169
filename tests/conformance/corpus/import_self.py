import importlib
import sys
name = "main" if sys.argv[0] == "main.py" else "job"
if __name__ == "__main__":
    again = importlib.import_module(name)
    print(again.__name__, again.__file__, again is sys.modules["__main__"])
