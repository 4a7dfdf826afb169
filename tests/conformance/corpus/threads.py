import threading
turns = [threading.Event() for _ in range(4)]
def work(n):
    turns[n].wait()
    print("thread", n, flush=True)
    turns[n + 1].set()
for n in range(3):
    threading.Thread(target=work, args=(n,)).start()
print(threading.current_thread(), threading.main_thread() is threading.current_thread())
print("main done", flush=True)
turns[0].set()
