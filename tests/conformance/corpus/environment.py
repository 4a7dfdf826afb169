# env: GREETING=grüß dich
# env: EMPTY=
import os
import subprocess
import sys
print(list(os.environ.items()))
print(list(os.environb.items()))
print(os.getenv("GREETING"), os.getenv("SANDRUN_WARM"), os.getenv("PYTHONPATH"))
os.environ["NEW"] = "1"
del os.environ["EMPTY"]
print(subprocess.run(["/usr/bin/env"], capture_output=True, text=True).stdout)
