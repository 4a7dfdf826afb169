import multiprocessing as mp
import sys
def work(queue, n):
    queue.put((__name__, n, sys.argv, sys.path[0], sys.modules["__main__"].__file__))
if __name__ == "__main__":
    context = mp.get_context("spawn")
    queue = context.Queue()
    p = context.Process(target=work, args=(queue, 3))
    p.start()
    print(queue.get())
    p.join()
    print(p.exitcode, __spec__)
