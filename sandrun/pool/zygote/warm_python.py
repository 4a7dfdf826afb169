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
clean end or a printed traceback flushes and leaves by ``os._exit`` (with a mark in the status
that a compiled PID 1 hears, so that the job is over before its memory is freed: FAREWELL
in ``seccomp.py``), and any other end is handed back to the interpreter (who knows the exit code) with its module table emptied, so that
it has little to free. If anything might, finalisation runs in full.

``door`` says ``+`` on its socket when it waits; a failed step is reported as JSON
``[step, errno, text]``. The order is one JSON datagram: ``script``, ``args``,
``env`` (the whole environment), ``cwd``, ``open_files`` (0: as it is).

Measured (:file:`tests/conformance/measure.py`, dispatch to exit, medians of one run):
Debian's 3.11 on two busy cores, so read the ratios only. hello.py: bare 25 ms, door
1.47 (0.058), fork 1.49 (0.058); under another name 0.089 and 0.064; an uncaught
exception 0.092 and 0.099; ``sys.exit(3)`` 0.23 and 0.41 and a file left open 0.24 and
0.48 (the interpreter finalises, which in a fork copies pages); numpy and pandas with
both preloaded 0.023 and 0.018. Proportional size of a parked process: door 3.3 to 3.8
MB, numpy and pandas 51 MB; fork (20 of them) 1.9 and 12 MB.
"""

# ruff: noqa: ANN001, ANN002, ANN201, ANN202, ANN204, D102 - read and compiled at each start of a job's interpreter
# ruff: noqa: PLC0415 - what is imported must be imported late, and unseen
# ruff: noqa: SLF001 - CPython's own private names are our trade
# ruff: noqa: B905, UP031 - Python 3.9 has no zip(strict=...)

import os
import sys

MODE_VARIABLE = "SANDRUN_WARM"
SCRIPT = "main.py"  # the name that costs nothing
ORDER_MAX_BYTES = 512 * 1024  # a datagram holds at most 208 KiB
READY = b"+"
FAREWELL = 0x5EED5A00  # beside an exit status, of which the kernel keeps 8 bits: see seccomp.py

# Read by the interpreter (or libc) at its start: a job that wants them otherwise starts cold.
COLD_PREFIXES = ("PYTHON", "LC_", "LD_", "MALLOC_", "GLIBC_")
COLD_NAMES = ("HOME", "LANG", "LANGUAGE", "OPENSSL_CONF", "XDG_DATA_HOME")

# Extension modules of the standard library whose objects do nothing visible when
# they are freed at exit, unless their type has a finaliser (then we see it).
# Not among them: _ctypes (may have filled libc's stdout), _sqlite3 (leaves a
# journal), _dbm, _gdbm (write on close), readline, _curses, _tkinter.
SAFE_EXTENSIONS = frozenset(
    [
        "_asyncio",
        "_bisect",
        "_blake2",
        "_bz2",
        "_codecs_cn",
        "_codecs_hk",
        "_codecs_iso2022",
        "_codecs_jp",
        "_codecs_kr",
        "_codecs_tw",
        "_contextvars",
        "_crypt",
        "_csv",
        "_datetime",
        "_decimal",
        "_elementtree",
        "_hashlib",
        "_heapq",
        "_hmac",
        "_json",
        "_lsprof",
        "_lzma",
        "_md5",
        "_multibytecodec",
        "_multiprocessing",
        "_opcode",
        "_pickle",
        "_posixshmem",
        "_posixsubprocess",
        "_queue",
        "_random",
        "_sha1",
        "_sha2",
        "_sha256",
        "_sha3",
        "_sha512",
        "_socket",
        "_ssl",
        "_statistics",
        "_struct",
        "_typing",
        "_uuid",
        "_zoneinfo",
        "array",
        "audioop",
        "binascii",
        "cmath",
        "fcntl",
        "grp",
        "math",
        "mmap",
        "nis",
        "pyexpat",
        "resource",
        "select",
        "spwd",
        "syslog",
        "termios",
        "unicodedata",
        "zlib",
    ]
)
# The same for packages: none of their extension types writes anything when freed.
SAFE_PACKAGES = frozenset(
    [
        "numpy",
        "pandas",
        "dateutil",
        "pytz",
        "tzdata",
        "six",
        "scipy",
        "matplotlib",
        "kiwisolver",
        "contourpy",
        "PIL",
    ]
)


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


def _start(arguments):
    """``python3 warm_python.py door 3 --preload a,b``: the same, for one start more.

    Wants this file beside itself under the name sitecustomize.py.
    """
    mode, fd, *rest = arguments
    preload = rest[1] if rest[:1] == ["--preload"] else ""
    env = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(__file__)))
    env[MODE_VARIABLE] = f"{mode} {fd} {preload}"
    os.set_inheritable(int(fd), True)
    os.execve(_python(), [_python(), SCRIPT], env)


def _write_out(arguments):
    """``python3 warm_python.py install DIR``: sitecustomize.py there, compiled for this
    interpreter (7 ms saved at each start). The directory may be read-only afterwards.
    """
    import py_compile

    (directory,) = arguments
    target = os.path.join(directory, "sitecustomize.py")
    with open(__file__, "rb") as source, open(target, "wb") as file:
        file.write(source.read())
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(target, doraise=True, invalidation_mode=mode)


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
    try:
        os.write(fd, _report_of(error, "preload"))
    finally:
        os._exit(1)


def _report_of(error, step):
    """JSON [step, errno, text]."""
    with _Unseen():
        from _json import encode_basestring_ascii as quote
    step, number, text = getattr(error, "report", None) or (
        step,
        getattr(error, "errno", 0) or 0,
        repr(error),
    )
    return ("[%s,%d,%s]" % (quote(step), number, quote(text[:500]))).encode()


# ── the waiting interpreter ──────────────────────────────────────────────────


class Interpreter:
    """What is known before the order comes. Keeps modules that the job must not see."""

    def __init__(self, preload, path):
        with _Unseen():
            import _collections
            import _json
            import _thread
            import gc

            # On 3.9 an atexit that is imported and forgotten crashes the end.
            atexit = None if sys.version_info < (3, 10) else __import__("atexit")

        self.path = path
        self.gc = gc
        self.thread_count = _thread._count
        self.defaultdict = _collections.defaultdict
        self.parse = _json_parser(_json)
        self.main = sys.modules["__main__"].__dict__
        self.started_with = dict(os.environ)
        self.finished = None  # of a script that is not main.py: filled at its clean end
        self.pid = 0
        self.preload = preload
        self.unseeded, self.drawn = _preload(preload)
        self.known = frozenset(sys.modules)
        self.last_known = list(sys.modules)[-1]
        self.trusted = all(map(_is_safe_preload, sys.modules.values()))
        self.fast_end = atexit is not None
        if atexit:
            self._register(atexit)

    def _register(self, atexit):
        # Run in the opposite order: tracing is noted and off before a frame of ours runs.
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
        self.gc.freeze()  # what is here now is not the script's: see _is_inert
        os.write(fd, ready)
        datagram = os.read(fd, ORDER_MAX_BYTES)
        os.close(fd)
        if not datagram:
            os._exit(0)  # nobody needs us
        return self.become(self.parse(datagram.decode()))

    def become(self, order):
        if not self.fast_end:
            self.gc.unfreeze()  # else at_exit does
        script, args, env = order["script"], order.get("args", []), order["env"]
        if order.get("open_files"):
            _limit_open_files(order["open_files"])
        os.chdir(order.get("cwd", "/work"))
        path = os.path.join(os.getcwd(), script)
        cold = self.needs_cold_start(path, env)
        _set_environment(env)
        sys.argv[:] = [script, *args]
        if hasattr(sys, "orig_argv"):  # 3.10
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
                cold = name.startswith(COLD_PREFIXES) or name in COLD_NAMES
                if cold and env.get(name) != before.get(name):
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
        if sys._getframe().f_back is None:  # else the script runs the callbacks, and goes on
            try:
                self.leave()
            except BaseException:  # noqa: BLE001, S110 - the interpreter finds it again and reports
                pass
        self.restore_tracing()
        self.gc.unfreeze()
        self.__dict__.clear()  # or the script's globals would outlive their module

    def leave(self):
        if not self.is_inert():
            return
        code = self.exit_code()
        if code is None:
            self.free_little()
            return
        sys.stdout.flush()
        sys.stderr.flush()
        if "ctypes" in sys.modules:  # preloaded: libc's own buffers may be in use
            sys.modules["ctypes"].pythonapi.fflush(None)
        os._exit(FAREWELL | code)

    def restore_tracing(self):
        tracing, profiling = self.traced
        if tracing.get(0) or profiling.get(0):
            sys.setprofile(profiling.get(0))
            sys.settrace(tracing.get(0))

    def exit_code(self):
        """0 or 1 if it is certain how the script ended, else None."""
        if self.finished is not None:
            return 0 if self.finished else None
        # The interpreter takes these back when the script has ended or its traceback is
        # printed; sys.exit() never comes back to there.
        if "__file__" in self.main or "__cached__" in self.main:
            return None
        if not hasattr(sys, "last_type"):
            return 0
        # Set before a traceback is printed, and by some programs too: it is the end
        # only if the script's outermost frame has stopped at that very instruction.
        tb = sys.last_traceback
        if tb is None or tb.tb_frame.f_globals is not self.main:
            return None
        stopped = tb.tb_frame.f_code.co_name == "<module>" and tb.tb_frame.f_lasti == tb.tb_lasti
        return 1 if stopped and not issubclass(sys.last_type, KeyboardInterrupt) else None

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
        new = [sys.modules[name] for name in self.new_modules()]
        return all(map(_is_safe_module, new)) and _is_inert(self.gc.get_objects())

    def new_modules(self):
        """Names of modules that have come since. From the youngest on: a look at a name
        writes to its reference count, and a fork would copy the pages of them all.
        """
        new = []
        for name in reversed(sys.modules):
            if name == self.last_known and len(new) + len(self.known) == len(sys.modules):
                break  # else that one was taken out and came back
            if name not in self.known:
                new.append(name)
        return new


def _preload(names):
    """Import them. Returns the generators that they made and left to be seeded by chance,
    and the numbers that chance gave to numpy's.
    """
    if not names:
        return (), frozenset()
    import random

    seed, unseeded = random.Random.seed, {}
    getrandbits, drawn = random.SystemRandom.getrandbits, set()

    def noted(self, a=None, version=2):
        unseeded[id(self)] = self
        if a is not None:
            del unseeded[id(self)]
        seed(self, a, version)

    def noted_bits(self, k):
        bits = getrandbits(self, k)
        drawn.add(bits)
        return bits

    random.Random.seed = noted
    random.SystemRandom.getrandbits = noted_bits
    try:
        for name in names:
            __import__(name)
    finally:
        random.Random.seed = seed
        random.SystemRandom.getrandbits = getrandbits
    for name in ("secrets", "numpy.random.bit_generator"):
        bits = getattr(sys.modules.get(name), "randbits", None)
        if getattr(bits, "__func__", None) is noted_bits:  # bound while it was ours
            sys.modules[name].randbits = bits.__self__.getrandbits
    return tuple(unseeded.values()), frozenset(drawn)


class NumpyChance:
    """What preloaded libraries have of numpy's generators, seeded by chance and not by them.

    Of numpy 1.17 and later, where a ``SeedSequence`` keeps the number that it was made from.
    Found once, 20 to 50 ms; in a fork 30 us for each (nothing if there is none, as with numpy
    and scipy by themselves).
    """

    def __init__(self, objects, drawn):
        self.sequences, self.bits, self.legacy = [], [], []
        module = sys.modules.get("numpy.random.bit_generator")
        if module is None or not drawn:
            return
        states = sys.modules["numpy.random.mtrand"].RandomState
        # numpy's own is seeded by _fresh in any case.
        own = sys.modules["numpy.random.mtrand"]._rand._bit_generator
        kinds = {kind: kind.__mro__ for kind in set(map(type, objects))}
        sequences = {k for k, mro in kinds.items() if module.SeedSequence in mro}
        bits = {k for k, m in kinds.items() if module.BitGenerator in m and _is_numpy_s(k)}
        by_id = {
            id(one): one
            for one in objects
            if type(one) in sequences and _is_number(one.entropy) and one.entropy in drawn
        }
        by_id.pop(id(own._seed_seq), None)
        self.sequences = list(by_id.values())
        for one in objects:
            if type(one) in bits and id(one._seed_seq) in by_id:
                self.bits.append(one)
            elif (
                states in kinds[type(one)]
                and id(one._bit_generator._seed_seq) in by_id
                and type(one._bit_generator).__name__ == "MT19937"  # the others keep no pair
            ):
                self.legacy.append(one)

    def seed_anew(self):
        for sequence in self.sequences:
            sequence.__init__()
        for bits in self.bits:
            bits.state = type(bits)(bits._seed_seq).state
        for state in self.legacy:  # forgets the second number of a pair, too
            state.set_state(state.get_state()[:3])


def _is_numpy_s(kind):
    return (kind.__module__ or "").startswith("numpy.random.")


def _is_number(value):
    return type(value) is int


def _is_safe_module(module):
    """Python code shows in its objects; of extension modules we trust some by name."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".so"):
        return True
    name = module.__name__
    return name in SAFE_EXTENSIONS or name.partition(".")[0] in SAFE_PACKAGES


def _is_safe_preload(module):
    """What we loaded, nobody has used yet: objects of the standard library's will show."""
    file = getattr(module, "__file__", None)
    return _is_safe_module(module) or (isinstance(file, str) and "lib-dynload" in file)


def _is_inert(objects):
    """``objects``: all that were made since the start (what the collector tracks).

    Visible when freed: what has a finaliser, in Python or in C (open files write,
    generators run their ``finally``, temporary files go), and weak references with
    a callback of the script's.
    """
    types = set(map(type, objects))
    if any(map(_has_finaliser, types)):
        return False
    weak = tuple(kind for kind in types if issubclass(kind, _WEAKREF))
    return not weak or all(
        _is_known_code(one.__callback__) for one in objects if isinstance(one, weak)
    )


_WEAKREF = sys.modules["_weakref"].ReferenceType if "_weakref" in sys.modules else ()
_STDLIB = getattr(sys, "stdlib_module_names", frozenset(("weakref", "_weakrefset", "functools")))


def _has_finaliser(kind):
    return any(
        "__del__" in base.__dict__ or base.__module__ in _ACTIVE_MODULES for base in kind.__mro__
    )


_ACTIVE_MODULES = frozenset(("sqlite3", "_sqlite3", "_dbm", "_gdbm", "_curses", "_tkinter"))


def _is_known_code(callback):
    if callback is None:
        return True
    if getattr(callback, "__name__", "") == "_destroy":  # C code of the abc module
        return isinstance(getattr(callback, "__self__", None), _WEAKREF)
    name = getattr(callback, "__module__", None) or ""
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
    os.execve(_python(), [_python(), script, *args], env)


def _python():
    """The interpreter as the command line named it."""
    return getattr(sys, "orig_argv", (sys.executable,))[0]


def _set_environment(env):
    if list(env.items()) == list(os.environ.items()):
        return
    zone = os.environ.get("TZ")
    os.environ.clear()
    os.environ.update(env)
    if env.get("TZ") != zone:
        sys.modules["time"].tzset()


def _limit_open_files(number):
    with _Unseen():
        import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


class _Unseen:
    """What is imported inside leaves no trace; a job that imports it gets it fresh."""

    def __enter__(self):
        self.before = [(table, set(table)) for table in (sys.modules, sys.path_importer_cache)]

    def __exit__(self, *_):
        for table, before in self.before:
            for name in set(table) - before:
                del table[name]


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

WARM_SCRIPT = b"""\
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
"""


SMALL_SCRIPT = b"""\
def function(value):
    return value + 1
for i in range(3):
    print(f"{i}", function(i))
"""
WARM_PACKAGES = {
    "numpy": """
import numpy as np
a = np.arange(12.0).reshape(3, 4)
(a @ a.T).sum(), a.mean(axis=0), np.sqrt(a)[a > 2], repr(a), str(a.std())
""",
    "pandas": """
import pandas as pd
d = pd.DataFrame({"a": [1, 2, 2], "b": [0.5, 1.5, 2.5], "c": ["x", "y", "z"]})
d.groupby("a")["b"].sum(), d.describe(), d[d.a > 1].sort_values("b"), d.to_string(), d.head()
""",
}


def warm_up(interpreter):
    """Do once what a small script does: its pages and caches are then there."""
    with _Unseen():
        import colorsys  # any small module: fills the directory caches of sys.path  # noqa: F401
    for name in interpreter.preload:
        _run_warm(WARM_PACKAGES.get(name, ""))
    _run_warm(WARM_SCRIPT)
    bytearray(64 * 1024)
    _recurse(40)
    _rehearse(interpreter)
    interpreter.gc.collect()
    interpreter.gc.freeze()


def ready_again(interpreter):
    """In a fork of what has warmed up: copy the pages that every job writes to, no others.

    The whole script again costs 1.2 ms of CPU time, and saves a small job 0.2 of them.
    Where packages are preloaded, fork.c copies what one has written to, instead: see
    :func:`needed_pages`.
    """
    _run_warm(b"print(end='', flush=True)")
    _rehearse(interpreter)


def needed_pages(interpreter, fork):
    """Where forks of us write, and what they read of files that they do not inherit:
    ``[(start, size, advice), ...]`` for madvise(2), found out by one that does what a small
    job does. They are the same pages in all forks. What is there before a job comes it need
    not wait for: 800 of 1,120 faults of one with numpy and pandas. (Of hello.py 60 of 113, for
    0.7 MB more in each that waits: there it is not done.)
    """
    mappings = _mappings()
    rehearse, files = _rehearsal(interpreter, fork.system)
    report = os.memfd_create("needed pages")
    python = fork.system.ctypes.pythonapi
    python.PyOS_BeforeFork()
    if fork.system.fork_and_wait() == 0:
        try:
            python.PyOS_AfterFork_Child()
            _fresh(fork)
            rehearse()
            found = _met_pages(mappings)
            with open(report, "w", closefd=False) as file:
                file.writelines("%d %d %d\n" % one for one in found)
        finally:
            os._exit(0)
    python.PyOS_AfterFork_Parent()
    for fd in files:
        os.close(fd)
    os.lseek(report, 0, os.SEEK_SET)
    with open(report) as file:
        return [tuple(map(int, line.split())) for line in file]


def _rehearsal(interpreter, system):
    """A function that does what a job does, and nothing that could have been done before
    (each page that it writes to, every fork will have of its own); the files it uses.
    """
    import _signal

    script = os.memfd_create("main.py")
    with open(script, "wb", closefd=False) as file:
        file.write(SMALL_SCRIPT)
    path = "/proc/self/fd/%d" % script
    null = os.open(os.devnull, os.O_RDWR)
    pointer = system.ctypes.c_void_p
    fopen = system.libc.fopen
    fopen.restype = pointer
    run = system.ctypes.pythonapi.PyRun_SimpleFileExFlags  # as the interpreter itself does
    run.argtypes = (pointer, system.ctypes.c_char_p, system.ctypes.c_int, pointer)
    env = dict(interpreter.started_with)
    names = path.encode(), SCRIPT.encode()

    def rehearse():
        _signal.alarm(REHEARSAL_MAX_S)  # a preloaded library may not live through a fork
        for stream in (1, 2):
            os.dup2(null, stream)
        interpreter.needs_cold_start(path, env)
        _rehearse(interpreter)
        _set_environment(env)
        sys.argv[:] = [SCRIPT]
        for name in interpreter.preload:
            _run_warm(WARM_PACKAGES.get(name, ""))
        run(fopen(names[0], b"rb"), names[1], 1, None)
        interpreter.exit_code()
        sys.stdout.flush()

    return rehearse, (script, null)


def _mappings():
    """Private ones: ``[(start, end, writable), ...]``."""
    found = []
    with open("/proc/self/maps") as file:
        for line in file:
            place, may = line.split(None, 2)[:2]
            if may in ("rw-p", "r--p", "r-xp"):
                start, end = place.split("-")
                found.append((int(start, 16), int(end, 16), may[1] == "w"))
    return found


def _met_pages(mappings):
    """Of a fork: ranges in ``mappings`` of pages that it has written to, or mapped anew.

    Documentation/admin-guide/mm/pagemap.rst
    """
    size = os.sysconf("SC_PAGE_SIZE")
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    # All of them first: what follows writes to more.
    maps = [
        os.pread(fd, (end - start) // size * 8, start // size * 8) for start, end, _ in mappings
    ]
    ranges = []
    for (start, _, writable), entries in zip(mappings, maps):
        pages = memoryview(entries).cast("Q")
        if not writable and pages and pages[0] & PAGE_EXCLUSIVE:
            continue  # of sandrun_inherit_program()
        wanted = PAGE_PRESENT | PAGE_EXCLUSIVE if writable else PAGE_PRESENT
        advice = MADV_POPULATE_WRITE if writable else MADV_POPULATE_READ
        for index, page in enumerate(pages):
            if page & wanted != wanted:
                continue
            place = start + index * size
            if ranges and sum(ranges[-1][:2]) == place and ranges[-1][2] == advice:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + size, advice)
            else:
                ranges.append((place, size, advice))
    return ranges


def _rehearse(interpreter):
    """The parts of ours that run with the job."""
    interpreter.parse('{"script": "main.py", "args": ["a"], "env": {"A": "b"}, "n": 1}')
    interpreter.is_inert()
    interpreter.needs_cold_start(interpreter.path, {})


def _run_warm(source):
    namespace = {"__name__": "warm", "__builtins__": __builtins__}
    exec(compile(source, "warm", "exec", 0, True), namespace)  # noqa: S102


def _recurse(depth):
    return depth and _recurse(depth - 1)


# ── template: one interpreter, many forks ────────────────────────────────────
#
# The template is root of an outer user namespace. For each sandbox it moves its
# *children's* pid namespace there (a process never changes its own), forks K1,
# which enters the other namespaces and the job's control group, and forks K2, so
# that K2 is an orphan in the sandbox's pid namespace and its PID 1 reaps it. K2
# confines itself and then waits like an interpreter at its door. It needs no
# parent-death signal: when PID 1 ends, so does the namespace.


class Fork:
    """One request: what the steps work on. ``fds``: descriptors by name."""

    def __init__(self, system, order, fds):
        self.system = system
        self.uid = order.get("uid", 1000)
        self.gid = order.get("gid", 1000)
        self.cwd = order.get("cwd", "/work")
        self.rlimits = order.get("rlimits", [])
        self.program = bytes.fromhex(order.get("program", ""))
        self.listen = order.get("listen", False)
        self.last_capability = order.get("last_capability", 40)
        self.confine = order.get("confine", True)  # False: tests without privilege
        self.is_confined = False  # by fork.c
        self.has_pages = False  # that a job needs; by fork.c, too
        names = order.get("fds", ())
        self.fds = dict(zip(names, fds))
        self.groups = [fd for name, fd in zip(names, fds) if name == "cgroup"]


def _pid_namespace(f):
    if "pidfd" in f.fds:
        f.system.setns(f.fds["pidfd"], CLONE_NEWPID)


def _namespaces(f):
    if "pidfd" in f.fds:
        f.system.setns(f.fds["pidfd"], JOINED_NAMESPACES)


def _control_group(f):
    for fd in f.groups:
        os.write(fd, b"0")


def _cgroup_namespace(f):
    if f.groups:
        f.system.unshare(CLONE_NEWCGROUP)


def _own_session(_):
    os.setsid()


def _standard_streams(f):
    # High numbers first: the targets 0..3 may be among the sources.
    high = [f.system.dup_above(f.fds[name], 64) for name in ("stdin", "stdout", "stderr", "go")]
    if "landlock" in f.fds:
        f.fds["landlock"] = f.system.dup_above(f.fds["landlock"], 64)
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=target < GO_FD)
    f.fds["go"] = GO_FD


def _place(f):
    os.chdir(f.cwd)
    os.umask(0o022)


def _rlimits(f):
    for resource, soft, hard in f.rlimits:
        f.system.setrlimit(resource, (soft, hard))


def _bounding_set(f):
    if f.confine:
        for capability in range(f.last_capability + 1):
            f.system.prctl(PR_CAPBSET_DROP, capability)


def _job_ids(f):
    if f.confine:
        os.setgroups([])
        os.setresgid(f.gid, f.gid, f.gid)
        os.setresuid(f.uid, f.uid, f.uid)


def _no_capabilities(f):
    if f.confine:
        f.system.drop_capabilities()


def _dumpable(f):
    f.system.prctl(PR_SET_DUMPABLE, 1)  # the change of uid clears it: /proc/self would be root's


def _no_new_privileges(f):
    if f.confine:
        f.system.prctl(PR_SET_NO_NEW_PRIVS, 1)


def _landlock(f):
    if "landlock" in f.fds:
        f.system.landlock(f.fds["landlock"])


def _few_descriptors(_):
    os.closerange(GO_FD + 1, 1 << 20)  # one close_range(2)


def _system_calls(f):
    if f.program:
        listener = f.system.load_filter(f.program, f.listen)
        if f.listen:
            f.system.send_fd(f.fds["go"], b"L", listener)
            os.close(listener)


def _fresh(f):
    """Nothing random may be the same in two forks; hash seed and addresses are."""
    modules = sys.modules
    for generator in f.system.unseeded:
        generator.seed()
    if f.system.numpy_chance:
        f.system.numpy_chance.seed_anew()
    if "random" in modules:
        modules["random"].seed()
    if "numpy.random" in modules:
        _seed_numpy(modules["numpy"])
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "uuid" in modules:
        modules["uuid"]._node = modules["uuid"]._last_timestamp = None
    if "ssl" in modules:
        # OpenSSL notices a fork by the pid alone, and pids are equal in all sandboxes.
        modules["ssl"].RAND_add(os.urandom(64), 64.0)
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    if "logging" in modules and isinstance(modules["logging"]._startTime, float):
        modules["logging"]._startTime = modules["time"].time()
    elif "logging" in modules:  # 3.13
        modules["logging"]._startTime = modules["time"].time_ns()


def _seed_numpy(numpy):
    """Its seed() takes 0.3 ms in a fork: it copies 90 pages more than a state of chance."""
    state = numpy.frombuffer(os.urandom(624 * 4), "u4")
    try:
        numpy.random.set_state(("MT19937", state, 624))  # used up: the next draw mixes it
    except (TypeError, ValueError):  # a preloaded module has chosen another generator
        numpy.random.seed()


# Order matters. Groups while still privileged; the bounding set while there is
# CAP_SETPCAP, ids before capabilities, dumpable after the ids; the filter last,
# since it forbids most of the above.
TEMPLATE_STEPS = (_pid_namespace,)
MIDDLE_STEPS = (_namespaces, _control_group, _cgroup_namespace)
CHILD_STEPS = (
    _own_session,
    _standard_streams,
    _place,
    _rlimits,
    _bounding_set,
    _job_ids,
    _no_capabilities,
    _dumpable,
    _no_new_privileges,
    _landlock,
    _few_descriptors,
    _system_calls,
    _fresh,
)

REHEARSAL_MAX_S = 10
PAGE_PRESENT = 1 << 63
PAGE_EXCLUSIVE = 1 << 56
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
FORK_LIBRARY = "/run/sandrun/fork.so"
GO_FD = 3
CLONE_NEWPID = 0x20000000
CLONE_NEWCGROUP = 0x02000000
# user, mnt, net, ipc, uts
JOINED_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x08000000 | 0x04000000
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
SYS_LANDLOCK_RESTRICT_SELF = 446  # on every architecture
MAX_FDS = 32


def _layouts(ctypes):
    """struct limit, range and settings of fork.c."""
    number, long, pointer = ctypes.c_int32, ctypes.c_uint64, ctypes.c_void_p

    class Limit(ctypes.Structure):
        _fields_ = [("resource", long), ("soft", long), ("hard", long)]  # noqa: RUF012

    class Range(ctypes.Structure):
        _fields_ = [("start", long), ("size", long), ("advice", long)]  # noqa: RUF012

    class Settings(ctypes.Structure):
        _fields_ = [  # noqa: RUF012
            ("uid", number),
            ("gid", number),
            ("last_capability", number),
            ("listens", number),
            ("cwd", ctypes.c_char_p),
            ("limit_count", long),
            ("limits", pointer),
            ("program_length", long),
            ("program", pointer),
            ("range_count", long),
            ("ranges", pointer),
        ]

    return Limit, Range, Settings


class System:
    """The system calls that Python lacks; ctypes is not in the job's sys.modules."""

    def __init__(self):
        with _Unseen():
            import _socket
            import ctypes
            import fcntl
            import resource
        self.ctypes = ctypes
        self.socket = _socket
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.setrlimit = resource.setrlimit
        self.dup_above = lambda fd, low: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, low)
        self.unseeded = ()
        self.numpy_chance = None
        self.serve_forks = None
        if os.path.exists(FORK_LIBRARY):
            library = ctypes.PyDLL(FORK_LIBRARY)
            library.sandrun_inherit_program()
            self.serve_forks = library.sandrun_serve_forks
            self.fork_and_wait = library.sandrun_fork_and_wait

    def settings_of(self, fork, pages):
        """What all forks have in common, for fork.c; all of it stays where it is."""
        limit, area, settings = _layouts(self.ctypes)
        limits = [limit(*(value % (1 << 64) for value in row)) for row in fork.rlimits]
        self.limits = (limit * len(limits))(*limits)
        self.ranges = (area * len(pages))(*pages)
        self.program = self.ctypes.create_string_buffer(fork.program, len(fork.program))
        return settings(
            fork.uid,
            fork.gid,
            fork.last_capability,
            fork.listen,
            os.fsencode(fork.cwd),
            len(limits),
            self.ctypes.addressof(self.limits),
            len(fork.program) // 8,
            self.ctypes.addressof(self.program),
            len(pages),
            self.ctypes.addressof(self.ranges),
        )

    def check(self, result, what):
        if result < 0:
            number = self.ctypes.get_errno()
            raise OSError(number, "%s: %s" % (what, os.strerror(number)))

    def setns(self, fd, flags):
        self.check(self.libc.setns(fd, flags), "setns(%#x)" % flags)

    def unshare(self, flags):
        self.check(self.libc.unshare(flags), "unshare(%#x)" % flags)

    def prctl(self, option, value):
        ulong = self.ctypes.c_ulong
        result = self.libc.prctl(option, ulong(value), ulong(0), ulong(0), ulong(0))
        self.check(result, "prctl(%d, %d)" % (option, value))

    def drop_capabilities(self):
        header = (self.ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
        self.check(self.libc.capset(header, (self.ctypes.c_uint32 * 6)()), "capset")

    def landlock(self, ruleset):
        number = self.ctypes.c_long(SYS_LANDLOCK_RESTRICT_SELF)
        self.check(self.libc.syscall(number, ruleset, 0), "landlock_restrict_self")

    def load_filter(self, program, listen=False):
        """Returns the listener, if there is to be one."""
        code = self.ctypes.create_string_buffer(program, len(program))
        fprog = (self.ctypes.c_uint64 * 2)(len(program) // 8, self.ctypes.addressof(code))
        call = self.ctypes.c_long(SYS_SECCOMP[os.uname().machine])
        flags = SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0
        result = self.libc.syscall(call, SECCOMP_SET_MODE_FILTER, flags, self.ctypes.byref(fprog))
        self.check(result, "seccomp")
        return result

    def send_fd(self, fd, message, sent):
        rights = (self.socket.SOL_SOCKET, self.socket.SCM_RIGHTS, sent.to_bytes(4, sys.byteorder))
        peer = self.socket.socket(self.socket.AF_UNIX, self.socket.SOCK_SEQPACKET, 0, fd)
        peer.sendmsg([message], [rights])
        peer.detach()


def _template(fd, preload, path):
    """Fork a waiting job process per request; only such a child ever returns."""
    try:
        _need_pipes()
        system = System()  # before what is preloaded: see sandrun_inherit_program()
        interpreter = Interpreter(preload, path)
        system.unseeded = interpreter.unseeded
        system.numpy_chance = NumpyChance(interpreter.gc.get_objects(), interpreter.drawn)
        warm_up(interpreter)
        interpreter.gc.collect()
        interpreter.gc.freeze()
        requests = Requests(fd)
        os.write(fd, READY)
    except BaseException as error:  # noqa: BLE001 - reported, then the end
        _fail(fd, error)
    settings = {}
    while True:
        text, fds = requests.receive()
        order = interpreter.parse(text)
        if order["op"] == "configure":
            settings = order
            requests.reply(READY)
            if system.serve_forks:
                fork = Fork(system, settings, ())
                _serve_forks(interpreter, fork, fd)
                requests.detach()
                return _wait_in_sandbox(interpreter, fork)
            continue
        fork = Fork(system, dict(settings, **order), fds)
        report = _fork_job(fork)
        if report is None:
            requests.detach()
            return _wait_in_sandbox(interpreter, fork)
        for received in fds:
            os.close(received)
        requests.reply(report)


def _need_pipes():
    """sys.stdin, stdout and stderr are made now, and know whether they can seek."""
    import stat

    if not all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (0, 1, 2)):
        raise _Step("stdio", 0, "a template needs pipes as its standard streams")


def _serve_forks(interpreter, fork, fd):
    """The same loop in C (native/fork.c), by a K1 that shares our memory. It comes back to
    Python in K2s only, which are confined then.
    """
    python = fork.system.ctypes.pythonapi
    pages = needed_pages(interpreter, fork) if interpreter.preload else []
    fork.has_pages = bool(pages)
    settings = fork.system.settings_of(fork, pages)
    # What os.fork() does before and after; the first is true of all that follow.
    python.PyOS_BeforeFork()
    fork.system.serve_forks(fd, fork.system.ctypes.byref(settings))
    python.PyOS_AfterFork_Child()
    fork.fds["go"] = GO_FD
    fork.is_confined = True


def _fork_job(fork):
    """In the template: the reply. In K2: None. K1 never returns."""
    try:
        _take_steps(TEMPLATE_STEPS, fork)
        pid = os.fork()
    except BaseException as error:  # noqa: BLE001 - this sandbox's fault, not the template's
        return _report_of(error, "fork")
    if pid:
        status = os.waitpid(pid, 0)[1]
        return READY if status == 0 else _report_of(_Step("middle", 0, "status %d" % status), "")
    try:
        _take_steps(MIDDLE_STEPS, fork)
        # os.fork, not clone: the at-fork handlers of C and Python must run.
        if os.fork():
            os._exit(0)
        return None
    except BaseException as error:  # noqa: BLE001 - reported, then the end
        _fail(fork.fds["go"], error)


def _wait_in_sandbox(interpreter, fork):
    try:
        if fork.is_confined:
            _take_steps((_fresh,), fork)
        else:
            _take_steps(CHILD_STEPS, fork)
        if not fork.has_pages:
            ready_again(interpreter)
    except BaseException as error:  # noqa: BLE001 - reported, then the end
        _fail(fork.fds["go"], error)
    return interpreter.wait(GO_FD, READY + b"%d" % os.getpid())


def _take_steps(steps, fork):
    for step in steps:
        try:
            step(fork)
        except OSError as error:
            name = step.__name__.strip("_")
            raise _Step(name, error.errno or 0, str(error)) from error


class Requests:
    """The template's end of its socket: JSON datagrams with descriptors."""

    def __init__(self, fd):
        with _Unseen():
            import _socket
        self.socket = _socket.socket(fileno=fd)
        self.space = _socket.CMSG_SPACE(MAX_FDS * 4)
        self.cloexec = _socket.MSG_CMSG_CLOEXEC
        self.truncated = _socket.MSG_TRUNC | _socket.MSG_CTRUNC
        self.rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)

    def receive(self):
        data, ancillary, flags, _ = self.socket.recvmsg(ORDER_MAX_BYTES, self.space, self.cloexec)
        if not data or flags & self.truncated:
            os._exit(0)  # nobody needs us, or the peer is broken
        fds = []
        for level, kind, packed in ancillary:
            if (level, kind) == self.rights:
                fds += memoryview(packed).cast("i").tolist()
        return data.decode(), fds

    def reply(self, report):
        self.socket.send(report)

    def detach(self):
        """In a child: the number will be closed, and must not be closed again later."""
        self.socket.detach()


_MODES = {"door": _door, "template": _template}

if __name__ == "sitecustomize":
    _install(os.path.dirname(__file__))
elif __name__ == "__main__":
    if sys.argv[1] == "install":
        _write_out(sys.argv[2:])
    else:
        _start(sys.argv[1:])
