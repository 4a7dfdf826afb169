import threading
import time
def work(n):
    time.sleep(0.01 * n)
    print("thread", n, flush=True)
for n in range(3):
    threading.Thread(target=work, args=(n,)).start()
print(threading.current_thread(), threading.main_thread() is threading.current_thread())
print("main done", flush=True)
