import subprocess
p = subprocess.Popen(["/bin/sleep", "0.01"])
print("leaves")
