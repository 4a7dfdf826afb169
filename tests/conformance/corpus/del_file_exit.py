import sys
class D:
    def __del__(self):
        print("freed")
keep = D()
globals().pop("__file__")
print("file" in globals())
