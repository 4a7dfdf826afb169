# only: main.py
print(open("/proc/self/cmdline").read())
print([l for l in open("/proc/self/status") if l.startswith(("Sig", "Shd", "Umask", "Name", "Threads"))])
