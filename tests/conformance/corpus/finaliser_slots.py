class Quiet:
    __slots__ = ()
    def __del__(self):
        print("slots freed")
one = Quiet()
