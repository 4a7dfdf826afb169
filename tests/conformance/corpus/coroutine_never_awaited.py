async def c():
    pass
x = c()
