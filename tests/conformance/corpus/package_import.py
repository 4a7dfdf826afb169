# file: pkg/__init__.py=from .inner import value\n
# file: pkg/inner.py=from . import other\nvalue = other.value + 1\n
# file: pkg/other.py=value = 41\n
import os
import pkg
import pkg.inner
print(pkg.value, pkg.__path__, pkg.inner.__spec__, pkg.__file__)
print(sorted(os.listdir("pkg")), sorted(os.listdir(".")))
