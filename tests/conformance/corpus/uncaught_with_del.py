class Noisy:
    def __init__(self, name): self.name = name
    def __del__(self): print("del", self.name)
a = Noisy("global")
def f():
    b = Noisy("local")
    raise ValueError("end")
f()
