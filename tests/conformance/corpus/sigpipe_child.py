import subprocess
print(subprocess.run(["/bin/sh", "-c", "grep -i sigign /proc/self/status"], capture_output=True).stdout)
print(subprocess.run(["/bin/sh", "-c", "yes | head -1"], capture_output=True))
