# only: main.py
import sys
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xinterpreters as interpreters
i = interpreters.create()
interpreters.run_string(i, "import sys; print('sub', [p for p in sys.path if 'sandrun' in p], __name__, flush=True)")
interpreters.destroy(i)
