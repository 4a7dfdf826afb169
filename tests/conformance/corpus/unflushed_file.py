import atexit
import os
f = open("out.txt", "w")
f.write("not flushed")
print(os.path.getsize("out.txt"))
# output: out.txt
