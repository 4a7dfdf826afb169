# file: other.py=print(__name__, __file__)\n
import runpy
print(sorted(runpy.run_path("other.py")))
