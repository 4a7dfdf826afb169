"""The interpreter that starts before its job is there. Runs as: the job, confined
(``door``, and the children of ``template``), or root of an outer user namespace
(``template``). I/O. Runs under the job's own Python, 3.9 to 3.14: standard library
only, nothing of sandrun.

How it starts. This file is also installed as ``sitecustomize.py`` in a directory
of its own, and the interpreter is started with the very command line of a job::

    argv  (python, "main.py"), cwd /work, stdin, stdout and stderr already pipes
    env   the default environment of a job, plus
          PYTHONPATH=<that directory>  SANDRUN_WARM="door 3 numpy,pandas"

``site`` then imports us at the end of start-up. We remove every trace and leave
one function behind: the last entry of ``sys.path_hooks``. The interpreter asks
those hooks whether ``main.py`` is a directory or a zip file, which is the last
thing it does before it opens the script; so this is where we wait. When the order
comes we set what is the job's (arguments, environment, directory), answer "not
mine" and are gone: *the interpreter itself* opens, compiles and runs main.py, as
always, with no frame of ours below it. ``__main__``, tracebacks, recursion depth,
``inspect.stack()``, exit codes and the end of the process need no imitation.

A script of another name cannot be handed back like that, since the interpreter
has fixed the name of its script before ``site`` runs. It goes the way of a zip
file: we claim the path, the interpreter calls ``runpy._run_module_as_main``, and
what it finds under that name is a chain of C callables (see :func:`_no_frames`)
that runs the script's code, again without a frame of ours. Two levels of recursion
are used up on Python 3.11 and earlier, and ``__file__`` is still there in
``atexit`` callbacks; nothing else differs.

Whenever we are not sure to do what a bare start does (the script is missing, a
directory, a zip file, compiled, has a syntax error; the environment holds what
start-up has already read: PYTHON*, LC_*, HOME, ...) we ``execve`` the bare
interpreter: slower, never different.

How it ends. ``Py_FinalizeEx`` spends 2 of the 10 ms of a hello.py on freeing what
the kernel frees anyway. Our ``atexit`` callback was registered first, so it runs
last, when threads are joined and every callback of the script has run. If nothing
that is alive could do anything visible when it is freed (:func:`_is_inert`), a
clean end flushes and leaves by ``os._exit``, and any other end is handed back to
the interpreter (who knows the exit code) with its module table emptied, so that
it has little to free. If anything might, finalisation runs in full.

``door`` says ``+`` on its socket when it waits; a failed step is reported as JSON
``[step, errno, text]``. The order is one JSON datagram: ``script``, ``args``,
``env`` (the whole environment), ``cwd``, ``open_files`` (0: as it is).
"""

import os
import sys

MODE_VARIABLE = "SANDRUN_WARM"
SCRIPT = "main.py"  # the name that costs nothing
ORDER_MAX_BYTES = 512 * 1024  # a datagram holds at most 208 KiB
READY = b"+"

# Read by the interpreter (or libc) at its start: a job that wants them otherwise starts cold.
COLD_PREFIXES = ("PYTHON", "LC_", "LD_", "MALLOC_", "GLIBC_")
COLD_NAMES = ("HOME", "LANG", "LANGUAGE", "OPENSSL_CONF", "XDG_DATA_HOME")

# Extension modules of the standard library whose objects do nothing visible when
# they are freed at exit, unless their type has a finaliser (then we see it).
# Not among them: _ctypes (may have filled libc's stdout), _sqlite3 (leaves a
# journal), _dbm, _gdbm (write on close), readline, _curses, _tkinter.
SAFE_EXTENSIONS = frozenset(
    """_asyncio _bisect _blake2 _bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr
    _codecs_tw _contextvars _crypt _csv _datetime _decimal _elementtree _hashlib _heapq _hmac _json
    _lsprof _lzma _md5 _multibytecodec _multiprocessing _opcode _pickle _posixshmem
    _posixsubprocess _queue _random _sha1 _sha2 _sha256 _sha3 _sha512 _socket _ssl _statistics
    _struct _typing _uuid _zoneinfo array audioop binascii cmath fcntl grp math mmap nis pyexpat
    resource select spwd syslog termios unicodedata zlib""".split()
)
# The same for packages: none of their extension types writes anything when freed.
SAFE_PACKAGES = frozenset(
    "numpy pandas dateutil pytz tzdata six scipy matplotlib kiwisolver contourpy PIL".split()
)
_HAVE_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC


class _Step(Exception):
    """A step has failed: its name, errno and text."""

    def __init__(self, step, number, text):
        super().__init__(step, number, text)
        self.report = (step, number, text)


# ── start: from site to the hook ─────────────────────────────────────────────


def _install(directory):
    """Called while ``site`` imports us: leave the hook, and no other trace."""
    order = os.environ.pop(MODE_VARIABLE, None)
    path = [p for p in os.environ.pop("PYTHONPATH", "").split(os.pathsep) if p != directory]
    if any(path):
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    if directory in sys.path:
        sys.path.remove(directory)
    sys.path_importer_cache.pop(directory, None)
    if order is not None:
        mode, fd, preload = (*order.split(" "), "")[:3]
        names = [name for name in preload.split(",") if name]
        hook = _make_hook(mode, int(fd), names, os.path.join(os.getcwd(), sys.argv[0]))
        # Last: the interpreter walks this list by index while we take ourselves out.
        sys.path_hooks.append(hook)
    # Now the site's own sitecustomize, if there is one. If not, this ImportError is
    # what a bare start gets, and site passes over it.
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # noqa: F401


def _restart_as_door(arguments):
    """``python3 warm_python.py door 3 --preload a,b``: the same, for one start more.

    Wants this file beside itself under the name sitecustomize.py.
    """
    mode, fd, *rest = arguments
    preload = rest[1] if rest[:1] == ["--preload"] else ""
    env = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(__file__)))
    env[MODE_VARIABLE] = " ".join((mode, fd, preload))
    os.set_inheritable(int(fd), True)
    os.execve(sys.orig_argv[0], [sys.orig_argv[0], SCRIPT], env)


def _make_hook(mode, fd, preload, script_path):
    def hook(path):
        if path != script_path:
            raise ImportError  # some directory of sys.path that does not exist
        sys.path_hooks.remove(hook)
        return _MODES[mode](fd, preload, path)

    return hook


def _door(fd, preload, path):
    """Wait in this very process."""
    try:
        interpreter = Interpreter(preload, path)
        warm_up(interpreter)
    except BaseException as error:  # noqa: BLE001 - reported, then the end
        _fail(fd, error)
    return interpreter.wait(fd, READY)


def _fail(fd, error):
    """Report a failed step and end."""
    from _json import encode_basestring_ascii as quote

    step, number, text = getattr(error, "report", None) or (
        "preload",
        getattr(error, "errno", 0) or 0,
        repr(error),
    )
    try:
        os.write(fd, b"[%s,%d,%s]" % (quote(step).encode(), number, quote(text[:500]).encode()))
    finally:
        os._exit(1)


# ── the waiting interpreter ──────────────────────────────────────────────────


class Interpreter:
    """What is known before the order comes. Keeps modules that the job must not see."""

    def __init__(self, preload, path):
        bare = set(sys.modules)
        import _collections
        import _json
        import _thread
        import atexit
        import gc

        self.path = path
        self.gc = gc
        self.thread_count = _thread._count
        self.defaultdict = _collections.defaultdict
        self.parse = _json_parser(_json)
        self.main = sys.modules["__main__"].__dict__
        self.started_with = dict(os.environ)
        self.finished = None  # of a script that is not main.py: filled at its clean end
        self.pid = 0
        _forget_modules(set(sys.modules) - bare)
        for name in preload:
            __import__(name)
        self.known = frozenset(sys.modules)
        self.trusted = all(map(_is_safe_module, sys.modules.values()))
        self._register(atexit)

    def _register(self, atexit):
        # Run in the opposite order: tracing is noted and off before a frame of ours runs.
        self.hooks = self.defaultdict(None)
        tracing = self.defaultdict(sys.gettrace)
        profiling = self.defaultdict(sys.getprofile)
        self.traced = (tracing, profiling)
        atexit.register(self.at_exit)
        atexit.register(sys.setprofile, None)
        atexit.register(sys.settrace, None)
        atexit.register(profiling.__missing__, 0)
        atexit.register(tracing.__missing__, 0)

    def wait(self, fd, ready):
        """Say ready, block, become the job. Returns (or raises) what the hook must."""
        self.gc.collect()
        self.gc.freeze()  # what is here now is not the script's: see _is_inert
        os.write(fd, ready)
        datagram = os.read(fd, ORDER_MAX_BYTES)
        os.close(fd)
        if not datagram:
            os._exit(0)  # nobody needs us
        return self.become(self.parse(datagram.decode()))

    def become(self, order):
        script, args, env = order["script"], order.get("args", []), order["env"]
        if order.get("open_files"):
            _limit_open_files(order["open_files"])
        os.chdir(order.get("cwd", "/work"))
        path = os.path.join(os.getcwd(), script)
        cold = self.needs_cold_start(path, env)
        _set_environment(env)
        sys.argv[:] = [script, *args]
        sys.orig_argv[1:] = [script, *args]
        if not cold and path == self.path:
            raise ImportError  # not ours: the interpreter runs it
        code = None if cold else _compile(path)
        if code is None:
            _start_cold(script, args, env)
        return self.run_other(code, path)

    def needs_cold_start(self, path, env):
        """Would a bare start do anything else than open ``path`` and run it?"""
        if not os.path.isfile(path):
            return True
        before = self.started_with
        if env != before:
            for name in {*env, *before}:
                if name.startswith(COLD_PREFIXES) or name in COLD_NAMES:
                    if env.get(name) != before.get(name):
                        return True
        for hook in sys.path_hooks:
            try:
                hook(path)
            except ImportError:
                continue
            return True  # a zip file
        return False

    def run_other(self, code, path):
        """Let the interpreter call ``code`` where it expects runpy. See the top."""
        self.main["__file__"] = path
        self.main["__cached__"] = None
        loader = sys.modules["_frozen_importlib_external"].SourceFileLoader
        self.main["__loader__"] = loader("__main__", path)
        self.finished = self.defaultdict(type(_compile)(code, self.main))
        fake = _Runpy("runpy")
        fake.__dict__["start"] = (_no_frames(self.finished), self.path, path)
        self.hidden = sys.modules.get("runpy")
        fake.__dict__["hidden"] = self.hidden
        sys.modules["runpy"] = fake
        return fake  # as an "importer" of the script's path

    # ── the end ──────────────────────────────────────────────────────────────

    def at_exit(self):
        """The last callback: leave at once if nobody can tell. See the top."""
        if sys._getframe().f_back is not None:
            return  # the script itself runs the callbacks: it goes on after us
        try:
            if not self.is_inert():
                self.restore_tracing()
                return
            if self.ended_cleanly():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        except BaseException:  # noqa: BLE001 - the interpreter finds and reports it again
            return
        self.free_little()

    def restore_tracing(self):
        tracing, profiling = self.traced
        sys.setprofile(profiling.get(0))
        sys.settrace(tracing.get(0))

    def ended_cleanly(self):
        """Did the script run to its end? (Otherwise we do not know the exit code.)"""
        if hasattr(sys, "last_type") or hasattr(sys, "last_exc"):
            return False  # set before a traceback is printed
        if self.finished is not None:
            return bool(self.finished)
        # The interpreter takes these back when the script has ended; sys.exit() never
        # comes back to there.
        return "__file__" not in self.main and "__cached__" not in self.main

    def free_little(self):
        """Keep everything alive, so that finalisation has nothing to walk."""
        kept = [dict(sys.modules), dict(self.main)]
        kept.append(kept)
        self.gc.freeze()
        self.gc.disable()
        sys.modules.clear()

    def is_inert(self):
        """Can nothing that is alive do anything visible when it is freed?"""
        if not self.trusted or self.thread_count() or sys.stdout is not sys.__stdout__:
            return False
        if sys.stderr is not sys.__stderr__:
            return False
        new = [sys.modules[name] for name in list(sys.modules) if name not in self.known]
        return all(map(_is_safe_module, new)) and _is_inert(self.gc.get_objects())


def _is_safe_module(module):
    """Python code shows in its objects; of extension modules we trust some by name."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".so"):
        return True
    name = module.__name__
    return name in SAFE_EXTENSIONS or name.partition(".")[0] in SAFE_PACKAGES


def _is_inert(objects):
    """``objects``: all that were made since the start (what the collector tracks).

    Visible when freed: what has a finaliser, in Python or in C (open files write,
    generators run their ``finally``, temporary files go), and weak references with
    a callback of the script's.
    """
    types = set(map(type, objects))
    if any(map(_has_finaliser, types)):
        return False
    weak = tuple(t for t in types if issubclass(t, _WEAKREF))
    for one in objects:
        # Instances without any slot are not tracked: their class is.
        if isinstance(one, type):
            if "__del__" in one.__dict__ and not one.__flags__ & _HAVE_GC:
                return False
        elif weak and isinstance(one, weak):
            callback = one.__callback__
            if callback is not None and not _is_known_code(callback):
                return False
    return True


_WEAKREF = sys.modules["_weakref"].ReferenceType if "_weakref" in sys.modules else ()
_STDLIB = getattr(sys, "stdlib_module_names", frozenset(("weakref", "_weakrefset", "functools")))


def _has_finaliser(kind):
    return any("__del__" in base.__dict__ for base in kind.__mro__)


def _is_known_code(function):
    name = getattr(function, "__module__", None) or ""
    return name != "__main__" and name.partition(".")[0] in (_STDLIB | SAFE_PACKAGES)


# ── parts ────────────────────────────────────────────────────────────────────


class _Runpy(type(sys)):
    """Stands in for runpy during one attribute look-up by the interpreter."""

    def __getattr__(self, name):
        if name != "_run_module_as_main":
            raise AttributeError(name)
        run, claimed, path = self.__dict__["start"]
        del sys.modules["runpy"]
        if self.__dict__["hidden"] is not None:
            sys.modules["runpy"] = self.__dict__["hidden"]
        sys.path_importer_cache.pop(claimed, None)
        sys.path_importer_cache[path] = None
        sys.path[0] = os.path.dirname(os.path.realpath(path))
        return run


def _no_frames(calls):
    """A callable of two arguments that calls ``calls.default_factory()``, all in C.

    A property hands its first argument to its getter, and ``__missing__`` of a
    defaultdict calls the factory with none; it then notes the key, which tells
    us that the script came to its end.
    """
    return property(calls.__missing__).__get__


def _compile(path):
    """The script's code, or None if a bare start had better deal with it."""
    try:
        with open(path, "rb") as file:
            source = file.read()
        magic = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
        if path.endswith(".pyc") or source[:2] == magic[:2]:
            return None
        return compile(source, path, "exec", 0, True)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None


def _start_cold(script, args, env):
    """Become a bare interpreter."""
    signal = sys.modules["_signal"]
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.execve(sys.orig_argv[0], [sys.orig_argv[0], script, *args], env)


def _set_environment(env):
    if list(env.items()) == list(os.environ.items()):
        return
    zone = os.environ.get("TZ")
    os.environ.clear()
    os.environ.update(env)
    if env.get("TZ") != zone:
        sys.modules["time"].tzset()


def _limit_open_files(number):
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
    _forget_modules({"resource"})


def _forget_modules(names):
    for name in names:
        sys.modules.pop(name, None)


def _json_parser(_json):
    """json.loads without the json package (which would import re, enum, ...)."""

    class Context:
        strict = False
        object_hook = None
        object_pairs_hook = None
        memo = {}  # noqa: RUF012
        parse_float = float
        parse_int = int
        parse_constant = float

    scan = _json.make_scanner(Context())
    return lambda text: scan(text, 0)[0]


# ── warm-up ──────────────────────────────────────────────────────────────────

WARM_SCRIPT = b'''\
import sys
import os
def function(a, *b, c=1, **d):
    return [x for x in (a, *b) if x], {**d, "c": c}
class Class:
    def __init__(self, value): self.value = value
    def __repr__(self): return f"{self.value!r:>5}"
for i in range(10):
    Class(i).value + 1
    function(i, 2.5, k="text")
try:
    raise ValueError("warm")
except ValueError as error:
    text = str(error)
sys.stdout.write("")
print(end="", flush=True)
sorted({"b": 1, "a": 2}.items(), key=lambda item: item[1])
"%s %d" % ("x", 1), "{}".format(2), "a,b".split(","), "-".join(["a"]), b"x".decode()
'''


def warm_up(interpreter):
    """Do once what a small script does: its pages and caches are then there."""
    import colorsys  # any small module: fills the directory caches of sys.path  # noqa: F401

    _forget_modules({"colorsys"})
    namespace = {"__name__": "warm", "__builtins__": __builtins__}
    exec(compile(WARM_SCRIPT, "warm", "exec", 0, True), namespace)  # noqa: S102
    namespace.clear()
    bytearray(256 * 1024)
    _recurse(40)
    interpreter.parse('{"script": "main.py", "args": ["a"], "env": {"A": "b"}, "n": 1}')
    interpreter.gc.collect()
    interpreter.gc.freeze()
    interpreter.is_inert()
    interpreter.needs_cold_start(interpreter.path, {})


def _recurse(depth):
    return depth and _recurse(depth - 1)


_MODES = {"door": _door}

if __name__ == "sitecustomize":
    _install(os.path.dirname(__file__))
elif __name__ == "__main__":
    _restart_as_door(sys.argv[1:])
