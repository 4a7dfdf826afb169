"""The server's own life: what it leaves behind, what touches a disk, how it ends."""

import contextlib
import hashlib
import os
import signal
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import servers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")


def mounts():
    return Path("/proc/self/mountinfo").read_text()


def alive(pids):
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                found.add(pid)
    return found


def wait_gone(pids):
    """Wait on process descriptors, not on a clock."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                import select

                poll = select.poll()
                poll.register(fd, select.POLLIN)
                assert poll.poll(10_000), f"process {pid} is still there"
            finally:
                os.close(fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_leaves_nothing(number):
    before = mounts()
    with servers.running() as server:
        assert server.python("print(1)")["stdout"] == "1\n"
        pids = servers.descendants(server.process.pid)
        assert len(pids) >= 4
        assert server.stop(number) == 0
    assert alive(pids) == set()
    assert mounts() == before
    assert groups_of(server.process.pid) == []


def test_draining_lets_a_running_job_end():
    with servers.running() as server:
        code = "import sys, time; print('up', flush=True); time.sleep(0.5); print('end')"
        job = server.post("/submit", {"main.py": code}).json()
        seen = []
        with server.client.stream("GET", f"/logs/{job['job_id']}/stream") as response:
            for text in response.iter_text():
                if not seen:
                    server.process.send_signal(signal.SIGTERM)
                seen.append(text)
        assert "".join(seen) == "up\nend\n"
        assert server.process.wait(30) == 0


def test_a_second_signal_ends_at_once():
    with servers.running() as server:
        job = server.post("/submit", {"main.py": "print(1, flush=True); input()\nwhile 1: pass"})
        with server.client.stream("GET", f"/logs/{job.json()['job_id']}/stream") as response:
            next(response.iter_text())
            pids = servers.descendants(server.process.pid)
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(Exception):  # noqa: B017 - refused or reset, whichever comes first
                while True:
                    server.client.get("/health").raise_for_status()
            server.process.send_signal(signal.SIGINT)
            server.process.wait(20)
        assert alive(pids) == set()


def groups_of(pid):
    """Those of one server: others may come and go beside it."""
    return [name for name in servers.our_cgroups() if f"/sandrun-{pid}-" in name]


def test_a_killed_supervisor_takes_everything_with_it_and_the_next_start_sweeps():
    before = mounts()
    with servers.running() as server:
        server.python("print(1)")
        first = server.process.pid
        pids = servers.descendants(first)
        server.process.kill()
        server.process.wait(10)
        wait_gone(pids)
    assert groups_of(first)
    other = subprocess.Popen(["sleep", "1000"])  # of somebody who sits beside us
    foreign = foreign_group(groups_of(first)[0], first, other.pid)
    assert mounts() == before
    with servers.running() as server:
        assert server.python("print(2)")["stdout"] == "2\n"
        assert not groups_of(first)
        assert other.poll() is None
        other.kill()
        other.wait()
        os.rmdir(foreign)
        second = server.process.pid
    assert not groups_of(second)


def foreign_group(ours, pid, member):
    """Another's group beside that of a killed server: its name is almost like ours."""
    path = Path(ours).with_name(f"sandrun-test-{pid}")
    path.mkdir()
    (path / "cgroup.procs").write_text(str(member))
    return path


def test_http_that_is_killed_comes_back_on_the_same_port():
    with servers.running() as server:
        server.python("print(1)")
        http = servers.http_of(server.process.pid)
        os.kill(http, signal.SIGKILL)
        wait_gone([http])
        assert server.python("print(2)")["stdout"] == "2\n"


def test_a_thousand_jobs_leave_no_descriptor_process_or_group():
    # Without the ceiling the stock follows the jobs, and a zygote has descriptors.
    with servers.running(servers.NO_RATE_LIMIT + "\n[pool]\nready_max = 4\n") as server:

        def state():
            tree = servers.descendants(server.process.pid)
            return {
                "descriptors": len(os.listdir(f"/proc/{server.process.pid}/fd")),
                "groups": len(servers.our_cgroups()),
                "processes": len(tree),
            }

        _delete_all(server, 50)
        before = state()
        jobs = int(os.environ.get("SANDRUN_MANY_JOBS", "300"))
        _delete_all(server, jobs)
        after = state()
        # A dozen descriptors for each sandbox that is being made or unmade just then; what
        # every second job leaves behind is more.
        room = {"descriptors": jobs // 2}
        for name, count in before.items():
            assert after[name] <= count + room.get(name, 30), (name, before, after)


def _delete_all(server, count):
    for _ in range(count):
        answer = server.client.post("/run", json={"code": "print(1)"}).json()
        assert answer["stdout"] == "1\n", answer
        server.client.delete(f"/jobs/{answer['job_id']}")


def test_no_file_of_a_job_is_on_a_disk(server):
    """While a job with an upload and an output runs, nothing writable of ours is on a disk."""
    code = (
        "import time\nopen('out.bin', 'wb').write(bytes(10**6))\nprint('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    archive = servers.tar_of({"main.py": code, "data.bin": bytes(10**6)})
    job = server.post("/submit", archive=archive).json()
    try:
        with server.client.stream("GET", f"/logs/{job['job_id']}/stream") as response:
            next(response.iter_text())
            for pid in servers.descendants(server.process.pid):
                assert _on_disk(pid, server.process.pid) == []
    finally:
        server.client.delete(f"/jobs/{job['job_id']}")


DISKLESS = {"tmpfs", "proc", "devtmpfs", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"}


def _on_disk(pid, supervisor):
    """Writable descriptors on, and writable mounts of, a real file system.

    The supervisor has a mount namespace of its own, for its cache of packages: the
    host's mounts as it sees them, and as http does.
    """
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            info = os.stat(path)
            if not stat.S_ISREG(info.st_mode):
                continue
            text = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
            flags = int(text.split("flags:")[1].split()[0], 8)
            target = os.readlink(path)
            writable = flags & (os.O_WRONLY | os.O_RDWR)
            if writable and not target.startswith(("/memfd:", "/sys/fs/cgroup/", "/proc/")):
                found.append(target)
        if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{supervisor}/ns/mnt"):
            for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
                fields = line.split()
                kind = fields[fields.index("-") + 1]
                if kind not in DISKLESS and "rw" in fields[5].split(","):
                    found.append(line)
    return found


def test_a_second_server_on_the_same_port_refuses_at_once(server):
    port = server.url.rpartition(":")[2]
    result = subprocess.run(
        [sys.executable, "-m", "sandrun", "--listen", f"127.0.0.1:{port}"],
        capture_output=True, text=True, timeout=30,
    )
    assert result.returncode == 78
    assert "Address already in use" in result.stderr


def test_a_second_server_on_the_same_unix_socket_refuses_and_takes_nothing(tmp_path):
    """It took the name away from the first, which nobody could reach any more; and what the
    first removed at its end was the second's.
    """
    path = tmp_path / "socket"
    with servers.running(listen=f"unix:{path}") as first:
        argv = [sys.executable, "-m", "sandrun", "--listen", f"unix:{path}"]
        result = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        assert result.returncode == 78
        assert "Address already in use" in result.stderr
        assert ask_unix(path)["status"] == "ready"
        first.process.kill()
        first.process.wait(10)
    assert path.is_socket()
    with servers.running(listen=f"unix:{path}"):  # of nobody who lives
        assert ask_unix(path)["status"] == "ready"
        path.unlink()
        path.write_text("of another")
    assert path.read_text() == "of another"


def ask_unix(path):
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
        return client.get("http://localhost/health").json()


def test_a_missing_or_broken_certificate_is_told_at_the_start(tmp_path):
    (tmp_path / "junk.pem").write_text("junk")
    config = tmp_path / "config.toml"
    for name in ("junk", "missing"):
        path = tmp_path / f"{name}.pem"
        config.write_text(f"[http]\ntls_cert = '{path}'\ntls_key = '{path}'\n")
        argv = [sys.executable, "-m", "sandrun", "--listen", "127.0.0.1:0", "--config", config]
        result = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        assert result.returncode == 78
        assert "http.tls_cert" in result.stderr
        assert str(path) in result.stderr


def test_self_signed_serves_tls_and_a_reload_keeps_the_certificate():
    """The whole way: made by openssl, in memory, told, served, used by our own client."""
    with servers.running(options=("--self-signed",)) as node:
        assert node.url.startswith("https://127.0.0.1:")
        host, port = node.url.removeprefix("https://").split(":")
        pem = ssl.get_server_certificate((host, int(port)))
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
        told = ":".join(digest[at : at + 2] for at in range(0, 64, 2))
        trust = ssl.create_default_context(cadata=pem)
        with httpx.Client(base_url=node.url, verify=trust, timeout=60) as client:
            assert client.post("/run", json={"code": "print(42)"}).json()["stdout"] == "42\n"
        old = servers.http_of(node.process.pid)
        node.process.send_signal(signal.SIGHUP)
        while servers.http_of(node.process.pid) == old:
            pass
        assert ssl.get_server_certificate((host, int(port))) == pem
        argv = [sys.executable, "-m", "sandrun", "sample", "--url", node.url, "--insecure"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert any(told in line for line in node.log)


def test_clear_text_beyond_loopback_is_refused_with_the_cure():
    result = subprocess.run(
        [sys.executable, "-m", "sandrun", "--listen", "0.0.0.0:0"],
        capture_output=True, text=True, timeout=30,
    )
    assert result.returncode == 78
    assert "tls_cert" in result.stderr


@pytest.mark.parametrize("init", ["native", "python"])
def test_signals_that_the_server_was_told_to_ignore_are_not_ignored_in_jobs(init):
    """As a shell does for what it puts into the background."""
    start = (
        "import runpy, signal\n"
        "for number in (2, 3, 10, 17, 34): signal.signal(number, signal.SIG_IGN)\n"
        "runpy.run_module('sandrun', run_name='__main__')"
    )
    config = f'{servers.NO_RATE_LIMIT}\n[pool]\ninit = "{init}"\n'
    with servers.running(config, program=("-c", start)) as server:
        for mode in ({"main.py": "print(open('/proc/self/status').read())"}, {"main.sh": "cat /proc/self/status"}):
            name = next(iter(mode))
            answer = server.run(mode, manifest={"entrypoint": name})
            ignored = int(answer["stdout"].split("SigIgn:")[1].split()[0], 16)
            assert not ignored & ~(1 << 12 | 1 << 24), (name, hex(ignored))  # Python's own two
