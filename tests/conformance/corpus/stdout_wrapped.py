# only: main.py
import sys
class Tee:
    def __init__(self, file): self.file = file
    def write(self, text): self.file.write(text.upper())
    def flush(self): self.file.write("[flush]\n"); self.file.flush()
sys.stdout = Tee(sys.stdout)
print("wrapped")
