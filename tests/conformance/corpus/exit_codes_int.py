import sys
print("three")
sys.exit(3)
