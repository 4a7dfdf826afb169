import subprocess
import sys
code = "import sys; print(sys.argv, sys.flags, sys.path, list(sys.modules)); sys.exit(5)"
r = subprocess.run([sys.executable, "-c", code, "x"], capture_output=True, text=True)
print(r.returncode, r.stdout, r.stderr)
print(subprocess.run("echo $0 $HOME; exit 2", shell=True, capture_output=True))
