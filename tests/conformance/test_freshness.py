"""Two jobs share nothing random, except what the price of a fork is: hash seed and addresses.

The forks here run where the danger is: in namespaces of their own, under equal
pids, from a template whose generators have all been used. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

PYTHON = os.environ.get("SANDRUN_TEST_PYTHON", "/usr/bin/python3")
NUMPY_PYTHON = os.environ.get("SANDRUN_TEST_NUMPY_PYTHON", "")
MODULES = "random,secrets,uuid,tempfile,ssl,multiprocessing.process,logging"
DRAWN = """\
import random, ssl, tempfile, uuid, sys
own, fixed, mended = random.Random(), random.Random(7), random.Random()  # as libraries have
mended.seed(7)
own.random()
random.random(), ssl.RAND_bytes(16), uuid.uuid1(), uuid.uuid4()
next(tempfile._get_candidate_names())
if "numpy" in sys.modules:
    import numpy.random
    numpy.random.rand()
    chance, seeded = numpy.random.default_rng(), numpy.random.default_rng(7)
    sequence, old = numpy.random.SeedSequence(), numpy.random.RandomState()
    child = numpy.random.Generator(numpy.random.Philox(sequence.spawn(1)[0]))
    chance.normal(), old.normal(), child.normal()  # of pairs: the second is kept
    old_seeded = numpy.random.RandomState(7)
"""
DRAW = """\
import drawn, multiprocessing, os, random, secrets, ssl, sys, tempfile, uuid
print(random.random())
print(drawn.own.random())
print(secrets.token_hex())
print(uuid.uuid4())
print(uuid.uuid1().clock_seq, uuid.uuid1().time)
print(next(tempfile._get_candidate_names()))
print(ssl.RAND_bytes(16).hex())
print(multiprocessing.current_process().authkey.hex())
if "numpy" in sys.modules:
    import numpy
    print(numpy.random.rand())
    print(numpy.random.default_rng().random())
    print(drawn.chance.random())
    print(drawn.chance.bit_generator._seed_seq.spawn(1)[0].generate_state(4))
    print(drawn.sequence.generate_state(4), drawn.sequence.spawn(1)[0].generate_state(4))
    print(drawn.old.normal())
    print(drawn.child.normal())
"""
SHARED = "import os; print(id(object)); print(hash('text')); print(open('/proc/self/maps').read())"

# Unshares everything, becomes two processes, of which one is PID 1, and waits.
HOLDER = """\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x20000000 | 0x20000 | 0x40000000 | 0x8000000 | 0x4000000):
    sys.exit(os.strerror(ctypes.get_errno()))
pid = os.fork()
if pid:
    print(pid, flush=True)
    os.waitpid(pid, 0)
    os._exit(0)
sys.stdin.read()
"""


@contextlib.contextmanager
def sandbox() -> Iterator[int]:
    """A pidfd of the PID 1 of new namespaces, with the uids of this one."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    line = process.stdout.readline()
    assert line, "unshare failed"
    pid = int(line)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text("0 0 65536", encoding="ascii")
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)
        process.communicate()


@pytest.fixture(scope="module", params=["", "numpy"])
def used_bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A bench whose template has drawn from every generator before it forks."""
    python = NUMPY_PYTHON if request.param else PYTHON
    if not python:
        pytest.skip("set SANDRUN_TEST_NUMPY_PYTHON to a Python that has numpy")
    extra = tmp_path_factory.mktemp("extra")
    extra.chmod(0o755)
    extra.parent.chmod(0o755)
    extra.parent.parent.chmod(0o755)
    (extra / "drawn.py").write_text(DRAWN, encoding="utf-8")
    preload = ",".join(filter(None, (request.param, MODULES, "drawn")))
    with harness.bench(python, preload, str(extra)) as bench:
        yield bench


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
@pytest.mark.parametrize("how", ["stale", "fresh"])
def test_openssl_is_fresh_where_it_cannot_notice_the_fork(how: str) -> None:
    """OpenSSL notices a fork by its pid alone; "stale" shows that this test would see it."""
    script = Path(__file__).with_name("equal_pids.py")
    command = [PYTHON, str(script), str(harness.WARM_PYTHON.parent), how]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    template, pid_1, bytes_1, pid_2, bytes_2 = output
    assert template == pid_1 == pid_2
    assert (bytes_1 == bytes_2) is (how == "stale")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
def test_two_forks_with_equal_pids_never_draw_the_same(used_bench: harness.Bench) -> None:
    case = harness.Case(DRAW.encode(), env={"PYTHONPATH": used_bench.extra_path})
    template = harness.Template(used_bench)
    runs, pids = [], []
    for _ in range(3):
        used_bench.lay_out(case)
        with sandbox() as pidfd:
            job = template.fork({"pidfd": pidfd}, confine=True)
            pids.append(job.pid)
            job.go.send(harness.order(case, used_bench.work))
            stdout, stderr, _ = job.collect(b"")
            assert not stderr
            runs.append(stdout.split(b"\n")[:-1])
    template.close()
    assert len(set(pids)) == 1
    for drawn in zip(*runs, strict=True):
        assert len(set(drawn)) == len(runs), drawn


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
def test_what_a_library_has_seeded_itself_stays_as_it_is(used_bench: harness.Bench) -> None:
    source = b"""import drawn, sys; print(drawn.fixed.random(), drawn.mended.random())
if "numpy" in sys.modules:
    import numpy.random, secrets
    assert drawn.seeded.random() == numpy.random.default_rng(7).random()
    assert drawn.old_seeded.random() == numpy.random.RandomState(7).random()
    assert secrets.randbits.__qualname__ == "SystemRandom.getrandbits", secrets.randbits
    assert numpy.random.bit_generator.randbits == secrets.randbits
"""
    case = harness.Case(source, env={"PYTHONPATH": used_bench.extra_path})
    first = random.Random(7).random()
    template = harness.Template(used_bench)
    used_bench.lay_out(case)
    with sandbox() as pidfd:
        job = template.fork({"pidfd": pidfd}, confine=True)
        job.go.send(harness.order(case, used_bench.work))
        stdout, stderr, _ = job.collect(b"")
    template.close()
    assert (stdout.decode(), stderr) == (f"{first} {first}\n", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
def test_a_fork_in_its_namespaces_is_confined() -> None:
    source = (
        b"import os\nprint(os.getuid(), os.getgid(), os.getgroups(), os.getppid(), os.getcwd())\n"
        b"print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('Cap', 'NoNew'))])\n"
        b"print(os.listdir('/proc/self/fd'), os.access('/proc/self/environ', os.R_OK))\n"
        b"import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    case = harness.Case(source)
    with harness.bench(PYTHON) as bench, sandbox() as pidfd:
        template = harness.Template(bench)
        bench.lay_out(case)
        job = template.fork({"pidfd": pidfd}, confine=True, rlimits=[[7, 99, 100]])
        job.go.send(harness.order(case, bench.work))
        stdout, stderr, _ = job.collect(b"")
        template.close()
    zero = "0000000000000000"
    assert not stderr
    assert stdout.decode().splitlines() == [
        f"1000 1000 [] 1 {bench.work}",
        str([zero] * 5 + ["1"]),
        # 3 is the listing's own. /proc is that of the host here: not ours to read.
        "['0', '1', '2', '3'] True",
        "(99, 100)",
    ]


def test_jobs_at_the_door_share_neither_addresses_nor_hash_seed() -> None:
    case = harness.Case(SHARED.encode())
    with harness.bench(PYTHON) as bench:
        one, two = (bench.door(case).stdout.split(b"\n", 2) for _ in range(2))
    assert one[1] != two[1]
    assert one[2] != two[2]
