import ctypes
import ctypes.util
class S(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int), ("b", ctypes.c_double)]
print(ctypes.sizeof(S), S(1, 2.0).b, ctypes.pythonapi.Py_IsInitialized())
callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)
print(callback(4), ctypes.cast(ctypes.pointer(ctypes.c_int(5)), ctypes.POINTER(ctypes.c_int))[0])
