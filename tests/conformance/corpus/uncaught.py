def outer():
    inner(1)
def inner(x):
    return x / 0
print("before")
outer()
