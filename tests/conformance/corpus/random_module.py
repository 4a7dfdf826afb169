import random
import sys
random.seed(1)
print(random.random(), hash(1), hash(2.5), sys.flags.hash_randomization)
