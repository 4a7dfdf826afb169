import inspect
import sys
import traceback
def depth():
    frame, n = sys._getframe(), 0
    while frame:
        frame, n = frame.f_back, n + 1
    return n
print(depth(), [f.function for f in inspect.stack()])
traceback.print_stack()
print(len(traceback.extract_stack()), sys._getframe().f_back)
