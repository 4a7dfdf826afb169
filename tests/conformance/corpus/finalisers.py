import sys
import weakref
class D:
    def __init__(self, name): self.name = name
    def __del__(self): print("del", self.name, sys is not None, flush=True)
a, _b = D("a"), D("_b")
cycle = D("cycle")
cycle.me = cycle
weakref.finalize(a, print, "finalize a")
keep = weakref.ref(a, lambda r: print("weak callback"))
print("end")
