import os
import sys
if len(sys.argv) == 1:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, sys.argv[0], "again"])
print(sys.argv, sys.orig_argv, sys.flags.isolated)
