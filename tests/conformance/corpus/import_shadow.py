# file: random.py=value = "shadow"\n
import random
print(random.value, random.__file__)
