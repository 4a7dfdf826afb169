import os
import resource
print(os.getcwd(), oct(os.umask(0o22)), sorted(os.listdir(".")))
print(sorted(os.listdir("/proc/self/fd"))[:3])
for fd in range(20):
    try:
        os.fstat(fd)
        print(fd, os.get_inheritable(fd), os.get_blocking(fd))
    except OSError:
        pass
print(open("main.py" if os.path.exists("main.py") else "job.py").fileno())
