import sys
import warnings
print(warnings.filters, warnings.defaultaction, warnings.onceregistry)
def deprecated():
    warnings.warn("old", DeprecationWarning, stacklevel=2)
deprecated()
warnings.warn("user")
warnings.warn("deep", stacklevel=9)
print(sorted(k for k in globals() if "warning" in k))
open("/dev/null")
