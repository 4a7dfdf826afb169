import io
import sys
sys.stdout = io.TextIOWrapper(open("copy.txt", "wb"), write_through=False)
print("to the file")
# output: copy.txt
