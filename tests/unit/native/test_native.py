"""The C of PID 1 against its Python: same bytes out, and no byte in that breaks it.

``driver.c`` is compiled with the sources and the address and undefined-behaviour
sanitizers; what they find ends it, and the test with it.
"""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandrun import journal
from sandrun.job import JobSpec, Limits
from sandrun.logs import MAX_DATA, MIN_CAPACITY, STDERR, STDOUT, Gap, LogReader, LogWriter, Record
from sandrun.messages import Dispatch, InlineFile, InterpreterInfo
from sandrun.pool.mounts import job_environment
from sandrun.pool.native import build, launcher
from sandrun.pool.zygote import boot
from sandrun.pool.zygote.group import GroupFiles

SANITIZE = "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(not COMPILER, reason="there is no C compiler")

few = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=150)
PLAN = boot.Plan(
    environment="default",
    known_environments=("default", "other"),
    interpreters={
        name: InterpreterInfo(name=name, path=f"/usr/bin/{name}") for name in ("python3", "node")
    },
    commands={
        "python3": ("/usr/bin/python3",),
        "node": ("/usr/bin/node", "--x"),
        "sh": ("/bin/sh",),
    },
    programs={name: bytes(16) for name in ("default", "warm", "compute", "zygote")},
    preload=(),
    env=job_environment("/bin"),
    default_limits=Limits(),
    max_limits=Limits(),
    max_files=10,
    landlock_abi=6,
    last_capability=40,
)
ENCODED_PLAN = msgspec.msgpack.encode(launcher._plan(PLAN))


class Driver:
    """The running program, its work directory and its log."""

    def __init__(self, program, directory):
        self.work = directory / "work"
        self.work.mkdir()
        self.log = os.memfd_create("log")
        work = os.open(self.work, os.O_RDONLY)
        self.process = subprocess.Popen(
            [program, str(work), str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(work, self.log),
            env={"ASAN_OPTIONS": "detect_leaks=0", "PATH": os.defpath},
        )
        os.close(work)

    def ask(self, letter, data):
        """The answer to one case."""
        try:
            self.process.stdin.write(letter + struct.pack("<I", len(data)) + data)
            self.process.stdin.flush()
            (size,) = struct.unpack("<I", self.process.stdout.read(4))
            return self.process.stdout.read(size)
        except (OSError, struct.error):
            raise AssertionError(self.process.communicate()[1].decode()[-3000:]) from None

    def clear(self):
        """The directory is held open: it stays."""
        for path in self.work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self):
        os.close(self.log)
        self.process.communicate()


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("native") / "driver")
    sources = [build.SOURCE / f"{name}.c" for name in ("msgpack", "plan", "sys", "child", "sockets")]
    argv = [COMPILER, "-std=gnu11", "-g", "-O1", *SANITIZE, f"-I{build.SOURCE}", "-o", path]
    done = subprocess.run(
        [*argv, Path(__file__).with_name("driver.c"), *sources], capture_output=True, text=True
    )
    if "san" in done.stderr and "cannot find" in done.stderr:
        pytest.skip("the compiler has no sanitizers (gcc's are in libgcc-*-dev)")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def driver(program, tmp_path):
    made = Driver(program, tmp_path)
    yield made
    made.close()


# ── msgpack, JSON, text ──────────────────────────────────────────────────────

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=40),
    max_leaves=60,
)


def test_msgpack_is_read_and_written_as_msgspec_does(driver):
    @many
    @given(VALUES)
    def check(value):
        encoded = driver.ask(b"m", msgspec.msgpack.encode(value))
        assert msgspec.msgpack.decode(encoded) == value

    check()


@pytest.mark.parametrize("size", [31, 32, 255, 256, 65535, 65536])
def test_msgpack_of_every_length(driver, size):
    for value in ("x" * size, b"x" * size, [None] * size, {str(n): n for n in range(size)}):
        assert msgspec.msgpack.decode(driver.ask(b"m", msgspec.msgpack.encode(value))) == value


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, 65535, 65536, 1 << 31, (1 << 63) - 1])
def test_msgpack_integers_at_their_borders(driver, value):
    for number in {value, -value, -value - 1}:
        assert msgspec.msgpack.decode(driver.ask(b"m", msgspec.msgpack.encode(number))) == number


def test_msgpack_that_is_none_is_refused(driver):
    @many
    @given(st.binary(max_size=200))
    def check(data):
        answer = driver.ask(b"m", data)
        if not answer:
            return
        try:
            expected = msgspec.msgpack.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # keys that are lists, text that is not UTF-8: others look at those
        assert repr(msgspec.msgpack.decode(answer)) == repr(expected)

    check()


def test_msgpack_too_deep_is_refused(driver):
    assert driver.ask(b"m", b"\x91" * 32 + b"\xc0")
    assert not driver.ask(b"m", b"\x91" * 40 + b"\xc0")
    assert not driver.ask(b"m", b"\x91" * 100_000)


def test_json_text_is_read_back(driver):
    @many
    @given(st.text())
    def check(text):
        assert json.loads(driver.ask(b"j", text.encode())) == text

    check()


def test_any_bytes_become_utf_8(driver):
    @many
    @given(st.binary() | st.text().map(str.encode))
    def check(data):
        text = msgspec.msgpack.decode(driver.ask(b"u", data))
        decoded = text.decode()  # whatever came in
        try:
            assert decoded == data.decode()
        except UnicodeDecodeError:
            assert "?" in decoded

    check()


# ── the log ──────────────────────────────────────────────────────────────────

SIZES = st.sampled_from([0, 1, 23, 24, 25, 1000, MAX_DATA - 1, MAX_DATA, MAX_DATA + 1])
PIECES = st.lists(
    st.tuples(st.sampled_from([STDOUT, STDERR]), SIZES | st.integers(0, 2 * MAX_DATA)), max_size=30
)


def both_logs(driver, capacity, pieces):
    """The same writes in C and in Python: both files, and what C says of its own."""
    records = [(s, bytes([n % 251]) * size, n / 8) for n, (s, size) in enumerate(pieces)]
    answer = driver.ask(b"l", msgspec.msgpack.encode((capacity, records)))
    fd = os.memfd_create("reference")
    writer = LogWriter(fd, capacity)
    for record in records:
        writer.write(*record)
    assert msgspec.msgpack.decode(answer) == [writer.end, writer.dropped]
    sizes = [os.fstat(one).st_size for one in (driver.log, fd)]
    found = [os.pread(one, 1 << 22, 0) for one in (driver.log, fd)]
    os.close(fd)
    assert sizes[0] == sizes[1]
    return found


def test_the_log_is_the_same_byte_for_byte(driver):
    @few
    @given(st.sampled_from([MIN_CAPACITY, MIN_CAPACITY + 13, 1 << 20]), PIECES)
    def check(capacity, pieces):
        ours, reference = both_logs(driver, capacity, pieces)
        assert ours == reference

    check()


@pytest.mark.parametrize("size", [1, 100, 40_000])
def test_a_flood_laps_the_ring_and_is_read_back(driver, size):
    count = 3 * MIN_CAPACITY // (size + 24)
    ours, reference = both_logs(driver, MIN_CAPACITY, [(STDOUT, size)] * count)
    assert ours == reference
    reader, position, found = LogReader(driver.log, MIN_CAPACITY), 0, []
    while more := reader.read(position):
        found += more
        position = more[-1].seq
    kept = sum(len(one.data) for one in found if isinstance(one, Record))
    (gap,) = (one for one in found if isinstance(one, Gap))
    assert kept + gap.dropped_bytes == size * count


def test_the_journal_is_read_back(driver):
    word = os.urandom(1000)
    driver.ask(b"l", msgspec.msgpack.encode((MIN_CAPACITY, [(0, word, 0.0)])))
    assert journal.read(driver.log, MIN_CAPACITY, journal.FINAL).data == word


# ── control files, reports, the plan ─────────────────────────────────────────


@pytest.mark.parametrize(
    "files",
    [
        {
            "attach.0": "", "memory.max": "max\n", "memory.events": "low 0\noom 3\noom_kill 2\n",
            "pids.max": "64\n", "pids.current": "7\n", "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
            "memory.peak": "4096\n", "pids.events": "max 5\n",
        },
        {
            "attach.0": "", "memory.limit_in_bytes": "9\n", "pids.max": "max\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "cpuacct.usage": "2500000000\n", "memory.max_usage_in_bytes": "123456789012\n",
        },
    ],
)  # fmt: skip
def test_control_files_tell_the_same(driver, files):
    fds = []
    for text in files.values():
        fds.append(os.memfd_create("file"))
        os.write(fds[-1], text.encode())
    group = GroupFiles(tuple(files), fds)
    seen = msgspec.msgpack.decode(driver.ask(b"g", msgspec.msgpack.encode(files)))
    group._cpu_base = group._oom_base = group._refused_base = 0
    assert seen == [
        pytest.approx(group.cpu_seconds()), group.oom_kills(), group.fork_refusals(),
        group.processes_now(), group.memory_peak(),
    ]  # fmt: skip
    group.close()


def test_control_files_of_any_content_break_nothing(driver):
    @few
    @given(st.binary(max_size=2000), st.sampled_from(["cpu.stat", "memory.events", "pids.max"]))
    def check(content, name):
        files = {"attach.0": b"", "memory.max": b"1", "memory.events": b"oom_kill 1\n"}
        files |= {"pids.max": b"1", "cpu.stat": b"usage_usec 1\n"} | {name: content}
        driver.ask(b"g", msgspec.msgpack.encode(files))

    check()


def test_a_report_of_any_content_is_an_answer(driver):
    @many
    @given(
        st.binary(min_size=1, max_size=4095)
        | st.text(alphabet='+"\\[],0123 x', min_size=1).map(str.encode)
    )
    def check(report):
        assert driver.ask(b"r", report)

    check()
    assert driver.ask(b"r", b"+42") == b"\x2a"
    assert driver.ask(b"r", b'["job_uid", 1, "[Errno 1] no"]') == b"fail [Errno 1] no"


def test_the_plan_is_read_and_a_damaged_one_is_told(driver):
    assert driver.ask(b"p", ENCODED_PLAN) == b"ok"

    @many
    @given(st.integers(0, len(ENCODED_PLAN) - 1), st.binary(max_size=4), st.booleans())
    def check(at, junk, cut):
        damaged = ENCODED_PLAN[:at] + junk + (b"" if cut else ENCODED_PLAN[at + len(junk) :])
        answer = driver.ask(b"p", damaged or b"\x80")
        assert answer == b"ok" or answer.startswith(b"fail ")

    check()


# ── a dispatch ───────────────────────────────────────────────────────────────

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)
NAMES = st.from_regex(r"\A-?[a-z]{1,8}(/[a-zé]{1,4}){0,2}\Z")
SPECS = st.builds(
    JobSpec,
    entrypoint=NAMES,
    interpreter=st.sampled_from(["python3", "node", "sh", "binary"]),
    args=st.lists(TEXT, max_size=20).map(tuple),
    env=st.dictionaries(
        TEXT.map(lambda text: text.replace("=", "") or "A") | st.just("PATH"), TEXT
    ),
    stdin=st.none() | st.binary(),
    limits=st.builds(Limits, open_files=st.sampled_from([256, 10])),
)


def expected_command(spec):
    entry = spec.entrypoint
    if spec.interpreter == "binary":
        return f"/work/{entry}", [f"./{entry}", *spec.args]
    command = PLAN.commands[spec.interpreter]
    script = f"./{entry}" if entry.startswith("-") else entry
    return command[0], [*command, script, *spec.args]


def test_a_dispatch_becomes_the_same_go(driver):
    driver.ask(b"p", ENCODED_PLAN)

    @many
    @given(SPECS)
    def check(spec):
        answer = driver.ask(b"d", msgspec.msgpack.encode(Dispatch(spec=spec)))
        cold, warm, unchanged = msgspec.msgpack.decode(answer)
        path, argv = expected_command(spec)
        env = {**PLAN.env, **spec.env}
        limit = 0 if spec.limits.open_files == 256 else spec.limits.open_files
        assert msgspec.msgpack.decode(cold) == {
            "path": path, "argv": argv, "env": env, "open_files": limit,
        }  # fmt: skip
        assert json.loads(warm) == {
            "cwd": "/work", "script": spec.entrypoint, "args": list(spec.args), "env": env,
            "open_files": limit,
        }  # fmt: skip
        assert unchanged

    check()


def test_files_are_placed_and_known_as_unchanged(driver):
    driver.ask(b"p", ENCODED_PLAN)

    @few
    @given(
        st.dictionaries(
            st.from_regex(r"\A[a-z](/[a-z]){0,3}\Z"), st.binary(max_size=300), max_size=8
        )
    )
    def check(files):
        driver.clear()
        spec = JobSpec(entrypoint="a", interpreter="sh")
        inline = tuple(InlineFile(path=path, data=data) for path, data in files.items())
        answer = driver.ask(b"d", msgspec.msgpack.encode(Dispatch(spec=spec, files=inline)))
        _, warm, unchanged = msgspec.msgpack.decode(answer)
        if warm is None:  # a file where another needs a directory
            return
        assert unchanged
        for path, data in files.items():
            assert (driver.work / path).read_bytes() == data

    check()


EVIL = [
    "", ".", "..", "/", "/etc/x", "../x", "a/../../x", "a//b", "a/", "a/.", "./a", "x" * 256,
    "a/" * 101 + "a", "x" * 2000, "a\nb", "a\\b", "a\x7f", "a\x85b",
]  # fmt: skip


@pytest.mark.parametrize("path", EVIL)
def test_a_name_that_leads_elsewhere_is_refused(driver, path):
    driver.ask(b"p", ENCODED_PLAN)
    dispatch = {
        "type": "Dispatch",
        "spec": msgspec.to_builtins(JobSpec(entrypoint="a", interpreter="sh")),
        "files": [{"path": path, "data": b"x", "executable": False}],
    }
    verdict, _, _ = msgspec.msgpack.decode(driver.ask(b"d", msgspec.msgpack.encode(dispatch)))
    assert verdict["exit_reason"] == "upload_error"
    assert not list(driver.work.rglob("*"))
    assert {child.name for child in driver.work.parent.iterdir()} == {"work"}


def test_the_maxima_bind_a_dispatch(driver):
    driver.ask(b"p", ENCODED_PLAN)
    for name, most in msgspec.to_builtins(Limits()).items():
        for value in (most + 1, 0, -1, float("nan"), float("inf"), "x", None):
            spec = msgspec.to_builtins(JobSpec(entrypoint="a", interpreter="sh"))
            spec["limits"][name] = value
            answer = driver.ask(
                b"d", msgspec.msgpack.encode({"type": "Dispatch", "spec": spec, "files": []})
            )
            verdict, _, _ = msgspec.msgpack.decode(answer)
            assert verdict["evidence"] == [f"limits: {name} is over the maximum"]


def test_a_hostile_dispatch_breaks_nothing(driver):
    """Whatever a taken-over http sends: an answer or an orderly end, and nothing outside."""
    driver.ask(b"p", ENCODED_PLAN)
    spec = JobSpec(
        entrypoint="a", interpreter="python3", args=("x", "y"), env={"A": "b"}, requirements="a"
    )
    whole = msgspec.msgpack.encode(
        Dispatch(
            spec=spec, files=(InlineFile(path="a/b", data=b"#!x"), InlineFile(path="a", data=b""))
        )
    )

    @settings(many, max_examples=300)
    @given(
        st.lists(
            st.tuples(st.integers(0, len(whole)), st.integers(0, 8), st.binary(max_size=6)),
            max_size=4,
        )
    )
    def check(changes):
        data = whole
        for at, gone, junk in changes:
            data = data[:at] + junk + data[at + gone :]
        driver.ask(b"d", data or b"\0")

    check()
    assert {child.name for child in driver.work.parent.iterdir()} == {"work"}


@pytest.mark.parametrize("size", [4095, 4096, 4097, 60_000])
@pytest.mark.parametrize("field", ["entrypoint", "interpreter", "environment", "build"])
def test_a_text_of_any_length_breaks_nothing(driver, field, size):
    driver.ask(b"p", ENCODED_PLAN)
    for spec in (
        JobSpec(entrypoint="a", interpreter="binary"),
        JobSpec(entrypoint="a", interpreter="sh", args=("\1" * 15000,) * 4),
    ):
        spec = msgspec.structs.replace(spec, **{field: "x" * size})
        assert driver.ask(b"d", msgspec.msgpack.encode(Dispatch(spec=spec)))
