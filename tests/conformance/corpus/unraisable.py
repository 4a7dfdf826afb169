class D:
    def __del__(self):
        raise ValueError("ignored")
d = D()
del d
print("on")
