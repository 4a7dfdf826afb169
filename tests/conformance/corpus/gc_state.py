import gc
print(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks, gc.garbage)
class A:
    pass
a = A()
print(sum(isinstance(o, A) for o in gc.get_objects()), gc.is_tracked(a))
a.me = a
del a
print(gc.collect() > 0)
