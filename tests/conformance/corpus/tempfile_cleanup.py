import os
import tempfile
t = tempfile.TemporaryDirectory(dir=".")
n = tempfile.NamedTemporaryFile(dir=".")
print(len(os.listdir(".")))
