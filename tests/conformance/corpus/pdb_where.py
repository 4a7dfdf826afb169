# stdin: where\nc\n
import pdb
def f():
    pdb.set_trace()
    return 1
f()
