import faulthandler
import os
faulthandler.enable()
def f():
    os.abort()
f()
