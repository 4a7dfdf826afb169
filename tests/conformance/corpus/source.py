import inspect
import linecache
import sys
def function():
    """Doc."""
    return 1
class Class:
    x = 1
print(inspect.getsource(function), inspect.getsource(Class))
print(inspect.getsource(sys.modules["__main__"]) == open(__file__).read())
print(inspect.getsourcefile(function), function.__code__.co_filename, function.__module__)
print(linecache.getline(__file__, 1))
