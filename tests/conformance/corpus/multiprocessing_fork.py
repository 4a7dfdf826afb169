import multiprocessing as mp
import os
import atexit
atexit.register(print, "parent at exit")
def work(n):
    print("in child", n, flush=True)
    return n * n
if __name__ == "__main__":
    context = mp.get_context("fork")
    p = context.Process(target=work, args=(2,))
    p.start()
    p.join()
    print(p.exitcode)
    with context.Pool(2) as pool:
        print(sum(pool.map(abs, range(-5, 0))))
