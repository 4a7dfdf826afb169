import faulthandler
import sys
def inner():
    faulthandler.dump_traceback(file=sys.stderr)
inner()
