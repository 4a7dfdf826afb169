"""The filters on the real kernel: ordinary programs do not notice, forbidden calls do.

Runs as anybody (``no_new_privs`` makes a filter loadable); as root the programs are
run as uid 65534, as a job would be, so that root's rights do not change results.
"""

# ruff: noqa: E501, T201 - programs are one line each; a child says what was wrong

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sandrun.pool import seccomp
from sandrun.pool.syscall_numbers import NUMBERS

pytestmark = pytest.mark.skipif(
    platform.machine() not in seccomp.AUDIT_ARCH, reason="no tables for this machine"
)

NOBODY = 65534
COLUMN = 0 if platform.machine() == "x86_64" else 1
PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, TSYNC = 38, 1, 1
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def call(name: str, *arguments: int) -> int:
    """0 or an errno; the result itself is of no interest."""
    words = [ctypes.c_long(argument) for argument in (*arguments, *[0] * (6 - len(arguments)))]
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(NUMBERS[name][COLUMN], *words) < 0 else 0


def load(program: bytes, flags: int = 0) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = SockFprog(len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(NO_NEW_PRIVS)")
    if number := call("seccomp", SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(fprog)):
        raise OSError(number, "seccomp")


def in_child(body: Callable[[], int | None], *programs: bytes) -> int:
    """The wait status of a child that loads ``programs`` and runs ``body``."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for program in programs:
                load(program)
            code = body() or 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


# --- Forbidden calls ------------------------------------------------------------------

HERE = [name for name, numbers in NUMBERS.items() if numbers[COLUMN] is not None]
KILLED = sorted({name for g in seccomp.KILLED for name in g.names} & set(HERE))
REFUSED = sorted(
    (name, row.number) for row in seccomp.JOB_REFUSED for name in row.names if name in HERE
)


@pytest.mark.parametrize("policy", ["default", "compute", "zygote", "http"])
def test_every_forbidden_call_ends_the_process_by_sigsys(policy: str) -> None:
    program = seccomp.program(seccomp.POLICIES[policy], platform.machine())
    extra = ["execve", "execveat"] if policy == "http" else []
    for name in KILLED + extra:
        status = in_child(lambda name=name: call(name) and 1, program)  # type: ignore[misc]
        assert os.WIFSIGNALED(status), name
        assert os.WTERMSIG(status) == signal.SIGSYS, name


def test_every_refused_call_gives_its_errno() -> None:
    def body() -> int:
        wrong = [(name, call(name), number) for name, number in REFUSED if call(name) != number]
        print(wrong, file=sys.stderr, flush=True)
        return min(len(wrong), 50)

    assert in_child(body, seccomp.job_program()) == 0


ARGUMENTS = [
    ("socket", (16, 3, 0), errno.EAFNOSUPPORT),  # netlink
    ("socket", (40, 1, 0), errno.EAFNOSUPPORT),  # vsock
    ("socket", (38, 5, 0), errno.EAFNOSUPPORT),  # alg
    ("socket", (2, 1, 262), errno.EAFNOSUPPORT),  # mptcp
    ("socketpair", (30, 1, 0), errno.EAFNOSUPPORT),
    ("ioctl", (0, 0x5412), errno.ENOTTY),  # TIOCSTI
    ("ioctl", (0, 0x5412 | 1 << 32), errno.ENOTTY),
    ("clone", (0x10000011,), errno.EPERM),
    ("clone", (0x8011,), errno.EPERM),
    ("fcntl", (0, 8, 1), errno.EPERM),
    ("fcntl", (0, 1031, 1), errno.EPERM),
    ("prctl", (4, 1), errno.EINVAL),
    ("prctl", (22, 1), errno.EINVAL),
    ("prctl", (67, 1), errno.EINVAL),  # PR_SET_MEMORY_MERGE
    ("mmap", (0, 4096, 3, 0x40022, -1), errno.EINVAL),
    ("madvise", (0, 4096, 12), errno.EINVAL),
    ("prlimit64", (1, 7), errno.EPERM),
    ("setpriority", (0, 1, 1), errno.EPERM),
    ("setsockopt", (0, 6, 31), errno.ENOPROTOOPT),
    ("futex", (0, 6), errno.ENOSYS),
    ("mknodat", (-100, 0, 0o20666), errno.EPERM),
    ("personality", (0x0040000,), errno.EPERM),
]


def test_refused_arguments_give_the_errno_of_their_rule() -> None:
    def body() -> int:
        wrong = [(n, a, call(n, *a), want) for n, a, want in ARGUMENTS if call(n, *a) != want]
        print(wrong, file=sys.stderr, flush=True)
        return min(len(wrong), 50)

    assert in_child(body, seccomp.job_program()) == 0


def test_an_unknown_number_is_enosys() -> None:
    def body() -> int:
        ctypes.set_errno(0)
        libc.syscall(4000)
        return int(ctypes.get_errno() != errno.ENOSYS)

    assert in_child(body, seccomp.job_program()) == 0


I386_GETPID = bytes.fromhex("b814000000cd80c3")  # mov eax, 20; int 0x80; ret
X32_GETPID = bytes.fromhex("b8270000400f05c3")  # mov eax, 39 | 0x40000000; syscall; ret


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 has these ABIs")
@pytest.mark.parametrize("code", [I386_GETPID, X32_GETPID], ids=["i386", "x32"])
def test_another_abi_ends_the_process(code: bytes) -> None:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    run = ctypes.CFUNCTYPE(ctypes.c_long)(address)
    status = in_child(lambda: run() and 1, seccomp.job_program())
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS


def test_pid_1_can_confine_a_child_further_and_only_so() -> None:
    """The job's filter goes on top of the inherited one; a listener is refused."""

    def body() -> int:
        if call("seccomp", SECCOMP_SET_MODE_FILTER, 8, 1) != errno.EINVAL:
            return 1
        load(seccomp.job_program())
        return int(call("seccomp", SECCOMP_SET_MODE_FILTER, 0, 0) != errno.EINVAL) * 2

    assert in_child(body, seccomp.zygote_program()) == 0


def test_the_kill_reaches_the_whole_process_from_a_thread() -> None:
    def body() -> int:
        threading.Thread(target=lambda: call("ptrace")).start()
        signal.pause()
        return 1

    status = in_child(body, seccomp.job_program())
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS


# --- The http process -----------------------------------------------------------------

HTTP_SERVER = """
import asyncio, ctypes, json, os, socket, ssl, sys, threading
import h11, uvloop
sys.path.insert(0, {repo!r})
from test_seccomp_corpus import load
from sandrun.pool import seccomp
program = seccomp.http_program()
listener = socket.create_server(("127.0.0.1", 0))
report = {{}}

async def main():
    async def serve(reader, writer):
        data = await reader.read(1000)
        fd = os.memfd_create("upload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, data)
        writer.write(os.pread(fd, 100, 0).upper())
        await writer.drain()
        writer.close()
        os.close(fd)
        DONE.set()
    server = await asyncio.start_server(serve, sock=listener)
    os.write(1, b"port %d\\n" % listener.getsockname()[1])
    await asyncio.wait_for(DONE.wait(), 20)
    for name, act in (
        ("open", lambda: os.open("/etc/passwd", os.O_RDONLY)),
        ("socket", lambda: socket.socket()),
        ("fork", lambda: os.fork()),
        ("listdir", lambda: os.listdir("/")),
    ):
        try:
            act()
        except OSError as error:
            report[name] = error.errno
    try:
        import sqlite3
    except (ImportError, PermissionError) as error:
        report["import"] = "refused"
    report["threads"] = threading.active_count()
    server.close()
    await server.wait_closed()

DONE = asyncio.Event()
load(program)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
print(json.dumps(report))
"""


def test_a_server_on_uvloop_lives_under_the_http_filter() -> None:
    repo = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", HTTP_SERVER.format(repo=repo)],
        stdout=subprocess.PIPE,
        cwd=Path(seccomp.__file__).parents[2],
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[1])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
            peer.sendall(b"hello")
            assert peer.recv(100) == b"HELLO"
        report = json.loads(server.stdout.read())
    assert server.returncode == 0
    assert report == {
        "open": errno.EACCES,
        "socket": errno.EPERM,
        "fork": errno.EPERM,
        "listdir": errno.EACCES,
        "import": "refused",
        "threads": 1,
    }


# --- Ordinary programs ----------------------------------------------------------------


class Program(NamedTuple):
    """``argv`` (the last word may be source) and the profile it should run under."""

    name: str
    argv: tuple[str, ...]
    profile: str = "default"


def _python(name: str, source: str) -> Program:
    return Program(f"python {name}", ("python3", "-c", source))


def _compute(name: str, source: str) -> Program:
    return Program(f"compute {name}", ("python3", "-c", source), "compute_exec")


def _bash(name: str, source: str) -> Program:
    return Program(f"bash {name}", ("bash", "-c", source))


C_SOURCE = r"printf '#include <stdio.h>\n#include <pthread.h>\nvoid*f(void*a){return a;}int main(){pthread_t t;pthread_create(&t,0,f,0);pthread_join(t,0);puts(\"c\");}' > a.c"
SPAWN = "import multiprocessing as m\ndef f(x): return x*x\n"
PROGRAMS = (
    _python("hello", "print('hello')"),
    _python("arguments", "import sys, os; print(sys.argv, sorted(os.environ))"),
    _python("exit code", "raise SystemExit(3)"),
    _python("traceback", "1/0"),
    _python("abort", "import os; os.abort()"),
    _python("threads", "import threading as t\nx=[]\nfor i in range(20): a=t.Thread(target=x.append,args=(i,)); a.start(); a.join()\nprint(x)"),
    _python("thread pool", "from concurrent.futures import ThreadPoolExecutor as E\nwith E(4) as e: print(list(e.map(abs, range(-9,9))))"),
    _python("subprocess", "import subprocess as s; print(s.run(['echo','x'],capture_output=True,text=True))"),
    _python("subprocess shell", "import subprocess as s; print(s.check_output('ls / | wc -l', shell=True) > b'1')"),
    _python("popen preexec", "import subprocess as s, os; print(s.run(['id','-u'],preexec_fn=os.setsid).returncode)"),
    _python("fork", "import os\np=os.fork()\nif not p: os._exit(7)\nprint(os.waitstatus_to_exitcode(os.waitpid(p,0)[1]))"),
    _python("multiprocessing fork", SPAWN + "with m.get_context('fork').Pool(2) as p: print(p.map(f, range(9)))"),
    _python("multiprocessing queue", "import multiprocessing as m\ndef f(q): q.put(5)\nq=m.Queue(); p=m.Process(target=f,args=(q,)); p.start(); print(q.get()); p.join()"),
    _python("multiprocessing shared memory", "from multiprocessing import shared_memory as s\na=s.SharedMemory(create=True,size=99); a.buf[0]=5; print(a.buf[0]); a.close(); a.unlink()"),
    _python("multiprocessing manager", "import multiprocessing as m\nd=m.Manager().dict(); d['a']=1; print(d)"),
    _python("asyncio", "import asyncio\nasync def f(): await asyncio.sleep(0.01); return 5\nprint(asyncio.run(f()))"),
    _python("asyncio subprocess", "import asyncio\nasync def f():\n p=await asyncio.create_subprocess_exec('echo','hi',stdout=-1)\n return await p.communicate()\nprint(asyncio.run(f()))"),
    _python("asyncio server", "import asyncio\nasync def main():\n async def h(r,w): w.write(await r.read(5)); await w.drain(); w.close()\n s=await asyncio.start_server(h,'127.0.0.1',0)\n r,w=await asyncio.open_connection(*s.sockets[0].getsockname())\n w.write(b'hello'); print(await r.read())\nasyncio.run(main())"),
    _python("http server", "import http.server as h, threading as t, urllib.request as u\nclass H(h.BaseHTTPRequestHandler):\n def do_GET(s): s.send_response(200); s.end_headers(); s.wfile.write(b'ok')\n def log_message(s,*a): pass\ns=h.HTTPServer(('127.0.0.1',0),H); t.Thread(target=s.serve_forever,daemon=True).start()\nprint(u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:%d'%s.server_port).read())"),
    _python("unix socket", "import socket as s\na,b=s.socketpair(); a.send(b'x'); print(b.recv(5))"),
    _python("udp", "import socket as s\na=s.socket(type=s.SOCK_DGRAM); a.bind(('127.0.0.1',0)); a.sendto(b'u',a.getsockname()); print(a.recv(5))"),
    _python("sqlite", "import sqlite3 as s\nc=s.connect('a.db'); c.execute('create table t(a)'); c.executemany('insert into t values(?)',[(i,) for i in range(99)]); c.commit(); print(c.execute('select sum(a) from t').fetchone())"),
    _python("tempfile", "import tempfile as t, os\nwith t.TemporaryDirectory() as d, t.NamedTemporaryFile(dir=d) as f: f.write(b'x'); f.flush(); print(os.path.getsize(f.name))"),
    _python("files", "import pathlib as p, os, shutil\np.Path('a/b').mkdir(parents=True); p.Path('a/b/c').write_text('x'); os.symlink('b','a/l'); os.link('a/b/c','a/h'); os.rename('a/h','a/i'); os.chmod('a/i',0o600); os.utime('a/i',(1,1)); os.truncate('a/i',0); print(sorted(str(x) for x in p.Path('a').rglob('*'))); shutil.copytree('a','z'); shutil.rmtree('a'); print(os.listdir('.'))"),
    _python("archives", "import tarfile, zipfile, io, gzip, bz2, lzma\nb=io.BytesIO(); t=tarfile.open(fileobj=b,mode='w:gz'); t.addfile(tarfile.TarInfo('a')); t.close()\nopen('q','w').write('x'); z=zipfile.ZipFile('z.zip','w'); z.write('q'); z.close(); print(zipfile.ZipFile('z.zip').namelist(), len(lzma.compress(b'a'*999)))"),
    _python("mmap", "import mmap\nm=mmap.mmap(-1,9999); m.write(b'abc'); m.madvise(mmap.MADV_DONTNEED); print(m[:3])\nopen('f','wb').write(b'z'*9999)\nwith open('f','r+b') as f: n=mmap.mmap(f.fileno(),0); n[0]=65; n.flush(); print(n[:2])"),
    _python("locks", "import fcntl\nf=open('l','w'); fcntl.flock(f,fcntl.LOCK_EX); fcntl.lockf(f,fcntl.LOCK_EX); print('locked')"),
    _python("fifo", "import os, threading as t\nos.mkfifo('p'); t.Thread(target=lambda: open('p','w').write('through')).start(); print(open('p').read())"),
    _python("signals", "import signal as s, os\ns.signal(s.SIGALRM,lambda *a: print('alarm')); s.setitimer(s.ITIMER_REAL,0.01); s.pause(); s.pthread_sigmask(s.SIG_BLOCK,[s.SIGUSR1]); os.kill(os.getpid(),s.SIGUSR1); print(s.sigpending(), s.sigwait([s.SIGUSR1]), s.sigtimedwait([s.SIGUSR1],0))"),
    _python("limits", "import resource as r, os\nr.setrlimit(r.RLIMIT_NOFILE,(99,99)); print(r.getrlimit(r.RLIMIT_NOFILE), os.nice(0), r.getrusage(r.RUSAGE_SELF).ru_nivcsw >= 0)"),
    _python("identity", "import os, pwd\nprint(os.getuid(), os.getgroups(), os.getresgid(), os.getpgrp() > 0, os.sched_getaffinity(0) != set()); os.setuid(os.getuid())"),
    _python("random and hashes", "import random, secrets, uuid, hashlib, ssl\nrandom.seed(1); print(random.random(), len(secrets.token_bytes(9)), uuid.uuid4().version, hashlib.sha256(b'').hexdigest(), len(ssl.RAND_bytes(5)))"),
    _python("select and poll", "import select, os\nr,w=os.pipe(); os.write(w,b'x'); p=select.poll(); p.register(r); e=select.epoll(); e.register(r); print(select.select([r],[],[],0)[0]==[r], p.poll(0)[0][1], e.poll(0)[0][1])"),
    _python("curses-free tty", "import os, sys, shutil\nprint(sys.stdout.isatty(), shutil.get_terminal_size())"),
    _python("copy", "import shutil, os\nopen('a','wb').write(os.urandom(99999)); shutil.copyfile('a','b'); shutil.copy2('a','c'); print(open('a','rb').read()==open('b','rb').read())"),
    _python("dns fails as it does", "import socket\ntry: socket.getaddrinfo('no.such.host.invalid',1)\nexcept OSError as e: print(type(e).__name__)"),
    _python("xattr", "import os\ntry: print(os.listxattr('.'))\nexcept OSError: print([])"),
    _python("ctypes and faulthandler", "import ctypes, faulthandler\nfaulthandler.enable(); print(ctypes.CDLL(None).abs(-5))"),
    _compute("hello", "print('hello')"),
    _compute("threads", "import threading as t\na=t.Thread(target=print,args=(5,)); a.start(); a.join()"),
    _compute("files", "import json, csv, os\njson.dump({'a':1},open('j','w')); print(json.load(open('j'))); os.mkdir('d'); os.rename('j','d/k'); os.remove('d/k')"),
    _compute("numbers", "import decimal, fractions, statistics, random\nrandom.seed(2); print(statistics.mean(random.random() for _ in range(999)), decimal.Decimal(2).sqrt())"),
    _bash("pipes", "seq 100 | sort -rn | head -3 | tr '\\n' ,; echo ${PIPESTATUS[@]}"),
    _bash("here document", "cat <<X | rev | tee o | wc -c\nabc\nX\ncat o"),
    _bash("jobs", "(exit 4) & wait $!; echo $?; trap 'echo bye' EXIT; for i in 1 2 3; do echo $i; done; kill -0 $$"),
    _bash("process substitution", "diff <(seq 3) <(seq 4)"),
    _bash("files", "mkdir -p a/b && touch a/b/c && cp -r a z && mv z y && ln -s a l && ls -R && find . -name c | sort && du -a y | wc -l && rm -r a y && stat -c %s l"),
    _bash("archives", "echo hi > f; tar czf f.tgz f && tar xzOf f.tgz; gzip -k f; zcat f.gz; xz -k f && xzcat f.xz"),
    _bash("text", "printf 'b 2\\na 1\\n' > t; sort t; awk '{s+=$2} END {print s}' t; sed s/a/A/ t; grep -c a t; cut -d' ' -f1 t | paste -sd, ; xargs -n1 echo < t"),
    _bash("times", "sleep 0.01; date -u -d @0 +%F; timeout 5 true; echo $?; timeout 0.05 sleep 5; echo $?; nice true; nohup true 2>/dev/null; echo $?"),
    _bash("false", "ulimit -n 100; ulimit -n; exit 9"),
    Program("sh", ("sh", "-c", "x=$(echo a); echo $x; test -f /etc/passwd && umask")),
    Program("perl", ("perl", "-e", "open F,'>f';print F 'x';close F; print -s 'f'; print `echo hi`; my $p=fork; exit 3 unless $p; wait; print $?>>8, sort map {$_*2} 1..3")),
    Program("ruby", ("ruby", "-e", "puts [1,2].sum; Thread.new{puts :t}.join; puts `echo hi`; File.write('f','x'); puts File.size('f'); pid=fork{exit 3}; Process.wait(pid); puts $?.exitstatus")),
    Program("ruby io", ("ruby", "-e", "require 'socket'; s=TCPServer.new('127.0.0.1',0); t=Thread.new{c=s.accept; c.puts 'x'; c.close}; puts TCPSocket.new('127.0.0.1',s.addr[1]).read; r,w=IO.pipe; w<<'p'; w.close; puts r.read")),
    _bash("gcc", C_SOURCE + " && gcc -O1 -pthread a.c -o a && ./a"),
    _bash("make", C_SOURCE + "; printf 'all: a\\n\\t./a\\na: a.c\\n\\tgcc -pthread $< -o $@\\n' > Makefile; make -s -j2"),
    Program("node", ("node", "-e", "const fs=require('fs');fs.writeFileSync('f','x');console.log(fs.statSync('f').size,[3,1].sort(),require('crypto').createHash('md5').update('').digest('hex'))")),
    Program("node child", ("node", "-e", "console.log(require('child_process').execSync('echo hi').toString());process.exitCode=4")),
    Program("node worker", ("node", "-e", "const w=require('worker_threads');if(w.isMainThread){const k=new w.Worker(__filename.endsWith('[eval]')?'require(\"worker_threads\").parentPort.postMessage(5)':__filename,{eval:true});k.on('message',m=>console.log(m))}")),
    Program("node http", ("node", "-e", "const h=require('http');const s=h.createServer((q,r)=>r.end('ok')).listen(0,'127.0.0.1',()=>h.get({port:s.address().port,host:'127.0.0.1'},r=>r.on('data',d=>{console.log(String(d));s.close()})))")),
    Program("node promises", ("node", "-e", "const f=require('fs/promises');(async()=>{await f.mkdir('d');await f.writeFile('d/a','x');console.log(await f.readdir('d'));await f.rm('d',{recursive:true});setTimeout(()=>console.log('t'),5)})()")),
)  # fmt: skip


def run_program(program: Program, directory: Path, bytecode: bytes | None) -> tuple[int, bytes]:
    """Exit status and output. Root becomes nobody first, as a job's process would."""

    def confine() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        if bytecode is not None:
            load(bytecode)

    done = subprocess.run(
        program.argv,
        cwd=directory,
        env={"PATH": SYSTEM_PATH, "HOME": str(directory), "TMPDIR": str(directory), "LANG": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=confine,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def fresh_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="sandrun-test-corpus-", dir="/tmp"))
    directory.chmod(0o777)
    return directory


def test_the_corpus_has_fifty_programs() -> None:
    assert len(PROGRAMS) >= 50


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_an_ordinary_program_does_not_notice_the_filter(program: Program) -> None:
    if shutil.which(program.argv[0], path=SYSTEM_PATH) is None:
        pytest.skip(f"this host has no {program.argv[0]}")
    bytecode = seccomp.job_program(program.profile)
    results = []
    # PID 1's filter as well: a job inherits it.
    for chosen in (None, bytecode, seccomp.zygote_program()):
        directory = fresh_directory()
        try:
            results.append(run_program(program, directory, chosen))
        finally:
            shutil.rmtree(directory)
    plain, filtered, of_pid_1 = results
    assert filtered == plain
    assert of_pid_1 == plain
