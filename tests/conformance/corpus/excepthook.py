import sys
import traceback
def hook(kind, value, tb):
    print("hook", kind.__name__, value, [f.name for f in traceback.extract_tb(tb)])
    print(sys._getframe().f_back, sys.last_value is value)
sys.excepthook = hook
raise LookupError("hooked")
