# file: pkg/__init__.py=
# file: pkg/__main__.py=import sys\nprint(__name__, __package__, sys.argv)\nraise ValueError("inside")\n
import runpy
runpy.run_module("pkg", run_name="__main__", alter_sys=True)
