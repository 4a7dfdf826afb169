import sys
seen = []
sys.addaudithook(lambda name, args: seen.append(name))
import json
print("import" in seen, len(seen) > 3)
