import sys
import types
class Lazy(types.ModuleType):
    def __del__(self):
        pass
sys.modules["__main__"] = Lazy("__main__")
sys.exit(7)
