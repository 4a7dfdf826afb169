exec("print(__name__, sorted(k for k in globals() if not k.startswith('__')))")
print(eval("__file__"), compile("1", "f", "eval").co_flags)
from __main__ import eval as again
