# only: main.py
print(open("/proc/self/cmdline").read())
# Not SigQ: it counts the signals of the user's other processes, too.
print([l for l in open("/proc/self/status") if l.startswith(("SigP", "SigB", "SigI", "SigC", "Shd", "Umask", "Name", "Threads"))])
