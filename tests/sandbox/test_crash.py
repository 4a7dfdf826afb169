"""Nothing is lost: each process is killed at each phase of a job, on the real kernel."""

import contextlib
import json
import os
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import servers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")

# Says that it is there, and waits for a signal.
PAUSE = 34 if os.uname().machine == "x86_64" else 73  # pause(2); elsewhere it is ppoll(2)
FOREVER = "import os, signal\nprint('up', flush=True)\nsignal.pause()\n"


@pytest.fixture(name="server")
def make_server():
    with servers.running() as server:
        yield server


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def http_of(server):
    return servers.http_of(server.process.pid)


def spawner_of(server):
    return next(
        p for p in servers.descendants(server.process.pid) if b"sandrun.pool.spawner" in command(p)
    )


def zygotes_of(server):
    """PID 1s: children of the supervisor in a pid namespace of their own."""
    found = []
    for pid in servers.descendants(server.process.pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            numbers = status.split("NSpid:")[1].split("\n")[0].split()
            if numbers[-1] == "1" and len(numbers) > 1:
                found.append(pid)
    return found


def kill(pid, number=signal.SIGKILL):
    """Send a signal that ends a process, and wait for its end."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
        ready, _, _ = select.select([fd], [], [], 30)
        assert ready, f"process {pid} is still there"
    finally:
        os.close(fd)


def kill_http(server):
    kill(http_of(server))
    reconnect(server)


def reconnect(server):
    """New connections: they wait in the listener's backlog until the next http accepts."""
    server.client.close()
    server.client = httpx.Client(base_url=server.url, timeout=60)


def submit(server, code, headers=None, **manifest):
    body = {"code": code, "manifest": manifest}
    reply = server.client.post("/submit", json=body, headers=headers or {})
    assert reply.status_code == 200, reply.text
    return reply.json()["job_id"]


def status(server, job):
    reply = server.client.get(f"/status/{job}")
    assert reply.status_code == 200, reply.text
    return reply.json()


def what_is_kept(server, job):
    """All of the status but its moments: PID 1's clock readings stand in for http's."""
    found = status(server, job)
    del found["timeline"]
    return found


def read_until(server, job, text, since=0):
    """Wait, by long-poll, until ``text`` is in the log. (what was read, cursor)"""
    seen = ""
    while text not in seen:
        reply = server.client.get(f"/logs/{job}", params={"since": since, "wait": 30}).json()
        seen += reply["stdout"]
        since = reply["cursor"]
        assert text in seen or reply["status"] in ("queued", "running"), reply
    return seen, since


def wait_for_ready(server, count):
    """Until so many sandboxes are leased. Each look is paced by an answer."""
    while server.client.get("/stats").json()["system"]["warm"] < count:
        pass


def wait_end(server, job):
    """The status once it has ended; waits on the log's end."""
    with server.client.stream("GET", f"/logs/{job}/stream") as response:
        response.read()
    found = status(server, job)
    assert found["status"] in ("completed", "failed"), found
    return found


def quota(server):
    found = server.client.get("/stats").json()["your_quota"]
    return found["active_jobs"], found["jobs_this_hour"]


# ── http ─────────────────────────────────────────────────────────────────────


def test_a_finished_job_is_still_there_after_http_was_killed(server):
    answer = server.run(
        {"main.py": "open('out.txt', 'w').write('0123456789')\nprint('said')\nraise SystemExit(0)"}
    )
    job = answer["job_id"]
    before = what_is_kept(server, job)
    stats = server.client.get("/stats").json()["your_quota"]["jobs_this_hour"]
    worker = server.client.get("/health").json()["worker_id"]
    for _ in range(2):
        kill_http(server)
        assert what_is_kept(server, job) == before
        assert server.client.get(f"/logs/{job}").json()["stdout"] == "said\n"
        part = server.client.get(f"/download/{job}/out.txt", headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.text) == (206, "234")
    assert server.client.get("/stats").json()["your_quota"]["jobs_this_hour"] == stats
    assert server.client.get("/health").json()["worker_id"] == worker
    assert server.client.delete(f"/jobs/{job}").status_code == 204
    kill_http(server)
    assert server.client.get(f"/status/{job}").status_code == 404


def test_view_ids_and_failures_outlive_http(server):
    reply = server.client.post("/submit", json={"code": "print(1 / 0)"}).json()
    found = wait_end(server, reply["job_id"])
    assert found["exit_reason"] == "nonzero_exit"
    cancelled = submit(server, FOREVER)
    read_until(server, cancelled, "up")
    server.client.post(f"/jobs/{cancelled}/cancel")
    kill_http(server)
    assert status(server, reply["job_id"])["evidence"] == found["evidence"]
    view = reply["view_url"].rpartition("/")[2] if "view_url" in reply else reply["view_id"]
    assert status(server, view)["exit_reason"] == "nonzero_exit"
    assert server.client.delete(f"/jobs/{view}").status_code == 403
    assert status(server, cancelled)["exit_reason"] == "cancelled"


def test_a_running_job_goes_on_and_its_log_is_followed_from_the_cursor(server):
    code = "import time\nprint('one', flush=True)\ntime.sleep(2)\nprint('two', flush=True)\n"
    job = submit(server, code)
    seen, cursor = read_until(server, job, "one\n")
    assert seen == "one\n"
    kill_http(server)
    seen, _ = read_until(server, job, "two\n", cursor)
    assert seen == "two\n"
    found = wait_end(server, job)
    assert found["exit_reason"] == "exited"
    assert server.client.get(f"/logs/{job}").json()["stdout"] == "one\ntwo\n"
    assert quota(server)[0] == 0


def test_a_running_job_can_be_cancelled_by_the_next_http(server):
    job = submit(server, FOREVER)
    read_until(server, job, "up")
    kill_http(server)
    assert server.client.post(f"/jobs/{job}/cancel").json()["exit_reason"] == "cancelled"
    assert quota(server)[0] == 0


def test_a_job_that_ends_while_there_is_no_http_has_its_result(server):
    """http is stopped, so the Result waits unread in the zygote's socket; then http is killed."""
    job = submit(
        server, "import signal\nprint('up', flush=True)\nsignal.alarm(1)\nsignal.pause()\n"
    )
    read_until(server, job, "up")
    pid = http_of(server)
    os.kill(pid, signal.SIGSTOP)
    wait_for_no_process_of_jobs(server)
    kill_http(server)
    found = wait_end(server, job)
    assert (found["exit_reason"], found["execution_metadata"]["signal"]) == ("signaled", 14)


def fill(server):
    """Jobs in every sandbox that there is, of other kinds, too, and one that waits."""
    address = admin_address(server)
    blockers = []
    while True:
        job = submit(server, FOREVER)
        while status(server, job)["queue_position"]:
            metrics = httpx.get(f"http://{address}/metrics").text
            if all(f"\nsandrun_pool_{kind} 0\n" in metrics for kind in ("warm", "booting")):
                break
        if status(server, job)["queue_position"]:
            return blockers, job
        read_until(server, job, "up")
        blockers.append(job)


def wait_for_no_process_of_jobs(server):
    """Until every job's process has ended: on their descriptors."""
    zygotes = set(zygotes_of(server))
    for pid in servers.descendants(server.process.pid):
        with contextlib.suppress(OSError, IndexError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if parent in zygotes and b"alarm" in Path(f"/proc/{pid}/cmdline").read_bytes():
                fd = os.pidfd_open(pid)
                select.select([fd], [], [], 30)
                os.close(fd)


def test_queued_jobs_keep_their_place():
    config = servers.NO_RATE_LIMIT + ADMIN + "[pool]\ncapacity = 1\nready = 1\n"
    with servers.running(config) as server:
        blockers, job = fill(server)
        waiting = [job] + [submit(server, f"print({n})") for n in range(2)]
        code = "import os\nprint(os.path.getsize('data.bin'))"
        upload = servers.tar_of({"main.py": code, "data.bin": os.urandom(300_000)})
        waiting.append(server.post("/submit", archive=upload).json()["job_id"])
        places = [status(server, job)["queue_position"] for job in waiting]
        assert places == [1, 2, 3, 4]
        kill_http(server)
        assert [status(server, job)["queue_position"] for job in waiting] == places
        assert all(status(server, job)["status"] == "running" for job in blockers)
        server.client.post(f"/jobs/{waiting[0]}/cancel")
        for job in blockers:
            server.client.post(f"/jobs/{job}/cancel")
        ends = [wait_end(server, job) for job in waiting[1:]]
        assert [end["exit_reason"] for end in ends] == ["exited"] * 3
        starts = [end["timeline"]["started"] for end in ends]
        assert starts == sorted(starts)
        assert server.client.get(f"/logs/{waiting[-1]}").json()["stdout"] == "300000\n"


def test_a_run_in_flight_is_cut_off_and_its_key_leads_to_the_same_job(server):
    code = "import time, os\nt = time.monotonic()\nwhile time.monotonic() - t < 1.5: pass\nprint(os.urandom(8).hex())"
    headers = {"Idempotency-Key": "the-key-1"}
    body = json.dumps({"code": code}).encode()
    raw = socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=30)
    raw.sendall(
        b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Idempotency-Key: the-key-1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    wait_active(server, 1)
    kill_http(server)
    with contextlib.suppress(ConnectionResetError):
        assert raw.recv(1) == b""
    raw.close()
    first = server.client.post(
        "/run", content=body, headers={**headers, "Content-Type": "application/json"}
    ).json()
    again = server.client.post(
        "/run", content=body, headers={**headers, "Content-Type": "application/json"}
    ).json()
    assert first["exit_reason"] == "exited"
    assert (first["job_id"], first["stdout"]) == (again["job_id"], again["stdout"])
    assert quota(server) == (0, 1)


def wait_active(server, count):
    """Until so many jobs are there. Each answer is an event of the server's own."""
    for _ in range(1000):
        if server.client.get("/stats").json()["system"]["active_jobs"] >= count:
            return
    raise AssertionError("no job began")


def test_an_upload_in_flight_is_cut_off_and_costs_nothing(server):
    address = server.url.removeprefix("http://").split(":")
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="main.py"\r\n\r\nprint(7)\r\n--b--\r\n'
    head = (
        b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Idempotency-Key: upload-1\r\nContent-Length: %d\r\n\r\n" % len(form)
    )
    raw = socket.create_connection(address, timeout=30)
    raw.sendall(head + form[:60])
    while quota(server) != (1, 1):
        pass  # the place is taken when the head is read
    kill_http(server)
    with contextlib.suppress(ConnectionResetError):
        assert raw.recv(1) == b""
    raw.close()
    assert quota(server) == (0, 0)
    with socket.create_connection(address, timeout=30) as raw:
        raw.sendall(head + form)
        assert b'"stdout":"7\\n"' in raw.recv(65536)
    assert quota(server) == (0, 1)


def test_http_killed_while_the_supervisor_is_stopped(server):
    """What http had said is in the socket, and counts, however late it is read."""
    wait_for_ready(server, 2)  # nobody makes another one while it is stopped
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        answer = server.python("print('while you slept')")
        assert answer["stdout"] == "while you slept\n"
        running = submit(server, FOREVER)
        read_until(server, running, "up")
        pid = http_of(server)
        os.kill(pid, signal.SIGKILL)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    reconnect(server)
    assert server.client.get(f"/logs/{answer['job_id']}").json()["stdout"] == "while you slept\n"
    assert status(server, running)["status"] == "running"
    assert server.client.post(f"/jobs/{running}/cancel").json()["exit_reason"] == "cancelled"


def test_a_stopped_supervisor_fails_no_job(server):
    job = submit(server, FOREVER, timeout=30)
    read_until(server, job, "up")
    wait_for_ready(server, 1)
    os.kill(server.process.pid, signal.SIGSTOP)
    assert server.python("print(1)")["stdout"] == "1\n"
    os.kill(server.process.pid, signal.SIGCONT)
    for n in range(12):
        assert server.python(f"print({n})")["stdout"] == f"{n}\n"
    assert status(server, job)["status"] == "running"


def test_the_standby_takes_over_and_health_and_metrics_say_why():
    """No interpreter has to start, so nobody waits for one; connects queue meanwhile."""
    with servers.running(servers.NO_RATE_LIMIT + ADMIN) as server:
        for count in (1, 2):
            standby = servers.standby_of(server.process.pid)
            kill_http(server)
            health = server.client.get("/health").json()
            assert servers.http_of(server.process.pid) == standby
            assert health["http_restarts"] == count
            assert health["http_last_end"] == "exit status -9"
        address = admin_address(server)
        assert "\nsandrun_http_restarts 2\n" in httpx.get(f"http://{address}/metrics").text
        os.kill(servers.standby_of(server.process.pid), signal.SIGKILL)  # nobody misses it
        assert server.python("print(1)")["stdout"] == "1\n"
        servers.standby_of(server.process.pid)
        assert server.client.get("/health").json()["http_restarts"] == 2


ADMIN = "[http]\nadmin_listen = '127.0.0.1:0'\n"


def admin_address(server):
    """The other port that http listens on."""
    public = server.url.rpartition(":")[2]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        port = str(int(fields[1].rpartition(":")[2], 16))
        if fields[3] == "0A" and port != public and fields[9] in sockets_of(http_of(server)):
            return f"127.0.0.1:{port}"
    raise AssertionError("no other port")


def sockets_of(pid):
    """Inode numbers of its sockets."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def test_http_that_dies_during_a_drain_is_followed_by_one_that_goes_on_draining():
    code = "import sys\nprint('up', flush=True)\nimport time\ntime.sleep(3)\nprint('end')"
    with servers.running() as server:
        job = submit(server, code)
        _, cursor = read_until(server, job, "up\n")
        server.process.send_signal(signal.SIGTERM)
        while server.client.get("/health").json()["status"] != "draining":
            pass
        kill_http(server)
        assert server.client.post("/submit", json={"code": "1"}).json()["code"] == "draining"
        seen, _ = read_until(server, job, "end\n", cursor)
        assert seen == "end\n"
        assert server.process.wait(60) == 0


# ── upgrade ──────────────────────────────────────────────────────────────────


def test_an_upgrade_loses_no_job_and_refuses_no_request(server):
    job = submit(server, FOREVER)
    _, cursor = read_until(server, job, "up")
    done = server.python("print('before')")["job_id"]
    old = http_of(server)
    fd = os.pidfd_open(old)
    result = subprocess.Popen(
        [sys.executable, "-m", "sandrun", "upgrade", "--pid", str(server.process.pid)],
        stdout=subprocess.PIPE,
        text=True,
    )
    count = 0
    while not select.select([fd], [], [], 0)[0]:
        answer = httpx.post(f"{server.url}/run", json={"code": "print(1)"}, timeout=60)
        if answer.status_code == 503:  # the new one takes over in this moment
            assert answer.headers["retry-after"] == "1"
            continue
        assert answer.json()["stdout"] == "1\n"
        count += 1
    os.close(fd)
    assert count
    assert result.communicate(timeout=60)[0] == "sandrun: upgraded\n"
    reconnect(server)
    assert server.client.get(f"/logs/{done}").json()["stdout"] == "before\n"
    assert http_of(server) != old
    assert status(server, job)["status"] == "running"
    assert server.client.get(f"/logs/{job}", params={"since": cursor}).json()["stdout"] == ""
    assert server.client.post(f"/jobs/{job}/cancel").json()["exit_reason"] == "cancelled"


def certificate(directory, name):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return ssl.PEM_cert_to_DER_cert((directory / "cert.pem").read_text())


def shown_certificate(server):
    address = server.url.removeprefix("https://").split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, timeout=30) as raw, context.wrap_socket(raw) as secure:
        return secure.getpeercert(binary_form=True)


def test_sighup_brings_a_new_certificate_and_a_broken_one_changes_nothing(tmp_path):
    first = certificate(tmp_path, "first")
    config = servers.NO_RATE_LIMIT + (
        f"[http]\ntls_cert = '{tmp_path}/cert.pem'\ntls_key = '{tmp_path}/key.pem'\n"
    )
    with servers.running(config) as server:
        assert shown_certificate(server) == first
        server.client = httpx.Client(base_url=server.url, verify=False, timeout=60)  # noqa: S501
        job = submit(server, FOREVER)
        read_until(server, job, "up")
        second = certificate(tmp_path, "second")
        old = os.pidfd_open(http_of(server))
        server.process.send_signal(signal.SIGHUP)
        assert select.select([old], [], [], 60)[0]
        os.close(old)
        assert shown_certificate(server) == second
        (tmp_path / "cert.pem").write_text("junk")
        pid = http_of(server)
        server.process.send_signal(signal.SIGHUP)
        wait_for_log(server, f"not reloaded: http.tls_cert {tmp_path}/cert.pem and ")
        assert http_of(server) == pid
        assert shown_certificate(server) == second
        for _ in range(3):  # whoever follows it, its standby and those after that: they
            kill(http_of(server))  # read the file again, until all jobs had been given up
            assert shown_certificate(server) == second
        server.client.close()
        server.client = httpx.Client(base_url=server.url, verify=False, timeout=60)  # noqa: S501
        assert status(server, job)["status"] == "running"


def test_the_service_manager_hears_of_a_reload_and_how_it_ended(tmp_path, monkeypatch):
    """man: sd_notify(3), Type=notify-reload"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        config = tmp_path / "config.toml"
        config.write_text("[rate_limit]\njobs_per_hour = 7\n")
        with servers.running(options=("--config", str(config))) as server:
            assert manager.recv(1000) == b"READY=1"
            # Two at once: what the second one reads is not passed over.
            config.write_text("[rate_limit]\njobs_per_hour = 8\n")
            server.process.send_signal(signal.SIGHUP)
            told_reloading(manager)
            config.write_text("[rate_limit]\njobs_per_hour = 9\n[pool]\ncapacity = 5\n")
            server.process.send_signal(signal.SIGHUP)
            assert manager.recv(1000) == b"READY=1\nSTATUS="
            reconnect(server)
            assert server.client.get("/stats").json()["your_quota"]["max_jobs_per_hour"] == 9
            assert any("needs a restart: [pool]" in line for line in server.log)
            for text, word in (("jobs_per_hour = 0", "jobs_per_hour"), ("junk", "not TOML")):
                config.write_text(f"[rate_limit]\n{text}\n")
                server.process.send_signal(signal.SIGHUP)
                told_reloading(manager)
                status, _, why = manager.recv(1000).partition(b"\nSTATUS=not reloaded: ")
                assert status == b"READY=1"
                assert word.encode() in why
            kill_http(server)
            assert server.client.get("/stats").json()["your_quota"]["max_jobs_per_hour"] == 9
            server.process.send_signal(signal.SIGUSR2)
            told_reloading(manager)
            assert manager.recv(1000) == b"READY=1\nSTATUS="
            server.process.send_signal(signal.SIGTERM)
            assert manager.recv(1000) == b"STOPPING=1"


def told_reloading(manager):
    """It began just now, on the clock that the manager compares it with."""
    begun = time.monotonic_ns() // 1000
    first, second = manager.recv(1000).decode().split("\n")
    assert first == "RELOADING=1"
    assert 0 <= time.monotonic_ns() // 1000 - int(second.removeprefix("MONOTONIC_USEC="))
    assert begun - int(second.removeprefix("MONOTONIC_USEC=")) < 60_000_000


def wait_for_log(server, text):
    """Each look at the log is paced by an answer of the server's."""
    for _ in range(5000):
        if any(text in line for line in server.log):
            return
        shown_certificate(server)
    raise AssertionError(f"{text!r} was not logged")


def test_the_service_manager_hears_ready_and_stopping(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        with servers.running() as server:
            heard = []
            while {b"READY=1", b"WATCHDOG=1"} - {*heard} or len(heard) < 4:
                heard.append(manager.recv(100))
            assert {*heard} == {b"READY=1", b"WATCHDOG=1"}
            assert heard.count(b"READY=1") == 1
            server.process.send_signal(signal.SIGTERM)
            while (word := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert word == b"STOPPING=1"


def test_an_http_that_dies_of_what_is_kept_is_followed_by_one_without_it():
    """It was given up, and all jobs with it. Here each one crashes at sight, by our doing."""
    with servers.running() as server:
        job = submit(server, FOREVER)
        read_until(server, job, "up")
        busy = os.pidfd_open(busy_zygote(server))
        while not any("without the " in line for line in server.log):
            assert server.process.poll() is None, server.log
            for pid in servers.descendants(server.process.pid):
                if b"sandrun.http" in command(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSEGV)
        assert select.select([busy], [], [], 60)[0]  # nobody would hear of its end
        os.close(busy)
        reconnect(server)
        assert server.client.get(f"/status/{job}").status_code == 404
        assert server.python("print('ran')")["stdout"] == "ran\n"


def test_an_http_that_others_kill_again_and_again_loses_no_job():
    """Five ends within ten seconds, the last of them before it served, and all jobs went."""
    with servers.running() as server:
        job = submit(server, FOREVER)
        _, cursor = read_until(server, job, "up")
        ends = 0
        while ends < 8:
            for pid in servers.descendants(server.process.pid):
                if b"sandrun.http" in command(pid):
                    with contextlib.suppress(ProcessLookupError):
                        kill(pid)
                        ends += 1
        reconnect(server)
        assert status(server, job)["status"] == "running"
        assert not any("without the " in line for line in server.log)
        assert server.client.get("/health").json()["http_restarts"] > 4
        assert server.client.get(f"/logs/{job}", params={"since": cursor}).json()["stdout"] == ""
        assert server.client.post(f"/jobs/{job}/cancel").json()["exit_reason"] == "cancelled"


# ── zygotes and spawners ─────────────────────────────────────────────────────


def test_idle_zygotes_that_die_are_replaced(server):
    assert server.python("print(0)")["stdout"] == "0\n"
    for pid in zygotes_of(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for n in range(5):
        assert server.python(f"print({n})")["stdout"] == f"{n}\n"
    assert quota(server) == (0, 6)


def test_a_job_whose_pid_1_is_killed_is_our_fault_costs_nothing_and_runs_once(server):
    marker = submit(server, FOREVER)
    read_until(server, marker, "up")
    busy = busy_zygote(server)
    before = quota(server)
    os.kill(busy, signal.SIGKILL)
    found = wait_end(server, marker)
    assert found["exit_reason"] == "server_fault"
    assert server.client.get(f"/logs/{marker}").json()["stdout"] == "up\n"
    assert quota(server) == (before[0] - 1, before[1] - 1)


def busy_zygote(server):
    """The PID 1 whose job has reached its pause(2); looked at between two answers."""
    for _ in range(1000):
        for pid in zygotes_of(server):
            if is_paused(pid):
                return pid
        server.client.get("/health")
    raise AssertionError("no job waits")


def is_paused(pid):
    """Whether a process below this PID 1 is in pause(2)."""
    for child in servers.descendants(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/syscall").read_text().split()[0] == str(PAUSE):
                return True
    return False


def test_pid_1_and_http_are_killed_together(server):
    job = submit(server, FOREVER)
    read_until(server, job, "up")
    busy = busy_zygote(server)
    os.kill(busy, signal.SIGKILL)
    kill_http(server)
    found = wait_end(server, job)
    assert found["exit_reason"] == "server_fault"
    assert quota(server) == (0, 0)


def test_a_spawner_that_dies_takes_no_job_with_it(server):
    job = submit(server, FOREVER)
    read_until(server, job, "up")
    kill(spawner_of(server))
    for n in range(8):  # more than were ready
        assert server.python(f"print({n})")["stdout"] == f"{n}\n"
    assert status(server, job)["status"] == "running"
    assert server.client.post(f"/jobs/{job}/cancel").json()["exit_reason"] == "cancelled"


# Waits for a signal, and then has something to collect.
ENDS_WITH_OUTPUTS = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: None)
print("up", flush=True)
signal.pause()
open("o.txt", "w").write("out")
"""


FILES = {"main.py": "open('x', 'w').write('1')\nprint(5)"}


def named(server, name, but=frozenset()):
    """A process of this name that was not killed. Each look is paced by an answer."""
    while True:
        for pid in set(servers.descendants(server.process.pid)) - but:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    return pid
        server.client.get("/health")


def paused_below(pid):
    """The process of a job that waits, by its PID 1."""
    for child in servers.descendants(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/syscall").read_text().split()[0] == str(PAUSE):
                return child
    raise AssertionError("no job waits")


@pytest.mark.parametrize("victims", [("spawner",), ("assist", "assist"), ("assist", "spawner")])
def test_what_is_killed_of_the_pool_is_missed_neither_by_jobs_nor_by_ready_sandboxes(victims):
    """Who unpacks and collects died with the spawner, and every job with it at its end; so
    did those that came next, in sandboxes that had been ready.
    """
    with servers.running() as server:
        job = submit(server, ENDS_WITH_OUTPUTS)
        read_until(server, job, "up")
        zygote = busy_zygote(server)
        wait_for_ready(server, 2)
        killed = set()
        for name in victims:
            victim = named(server, f"sandrun-{name}", killed)
            killed.add(victim)
            kill(victim)
            answer = server.run(archive=servers.tar_of(FILES))
            found = answer["exit_reason"], answer["stdout"], len(answer["outputs"])
            assert found == ("exited", "5\n", 1), answer
        os.kill(paused_below(zygote), signal.SIGUSR1)
        assert wait_end(server, job)["exit_reason"] == "exited"
        assert server.client.get(f"/download/{job}/o.txt").text == "out"
        assert quota(server)[0] == 0


def assistants_of(server):
    """Who unpacks and collects, in the order of their pids."""
    found = []
    for pid in set(servers.descendants(server.process.pid)):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "sandrun-assist":
                found.append(pid)
    return sorted(found)


def successors_of(server, namespace=""):
    """Those that are in a user namespace, or in any."""
    found = []
    for pid in assistants_of(server):
        with contextlib.suppress(OSError):
            place = os.readlink(f"/proc/{pid}/ns/user")
            if b"sandrun.pool.successor" in command(pid) and namespace in ("", place):
                found.append(pid)
    return found


def kill_at_once(pids):
    """Nobody of them sees another's end."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it is gone already
            kill(pid)


def until(server, look):
    """What ``look`` finds in the end. Each look is paced by an answer."""
    while not (found := look()):
        server.client.get("/health")
    return found


def test_jobs_outlive_their_spawner_and_its_assistant_killed_at_once():
    """Nobody was left who had power over their sandboxes, and the next spawner has none:
    the job ended with server_fault, and so did those in sandboxes that had been ready.
    """
    with servers.running() as server:
        job = submit(server, ENDS_WITH_OUTPUTS)
        read_until(server, job, "up")
        zygote = busy_zygote(server)
        wait_for_ready(server, 2)
        spawner = spawner_of(server)
        namespace = os.readlink(f"/proc/{spawner}/ns/user")
        kill_at_once([spawner, *assistants_of(server)])
        for _ in range(2):
            heirs = until(server, lambda: successors_of(server, namespace))
            assert [os.listdir(f"/proc/{pid}/root") for pid in heirs] == [[]]
            answer = server.run(archive=servers.tar_of(FILES))
            found = answer["exit_reason"], answer["stdout"], len(answer["outputs"])
            assert found == ("exited", "5\n", 1), answer
            # Once more, with whoever has come.
            until(server, lambda: len(assistants_of(server)) > 1)
            kill_at_once([spawner_of(server), *assistants_of(server)])
        os.kill(paused_below(zygote), signal.SIGUSR1)
        assert wait_end(server, job)["exit_reason"] == "exited"
        assert server.client.get(f"/download/{job}/o.txt").text == "out"
        assert quota(server)[0] == 0


def test_a_successor_ends_with_the_last_sandbox_that_it_is_for():
    with servers.running("[pool]\nready = 1\n") as server:
        wait_for_ready(server, 1)
        kill_at_once([spawner_of(server), *assistants_of(server)])
        (successor,) = until(server, lambda: successors_of(server))
        end = os.pidfd_open(successor)
        while not select.select([end], [], [], 0)[0]:  # until all that were ready have been used
            assert server.python("print(1)")["stdout"] == "1\n"
        os.close(end)
        assert successors_of(server) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_outlives_its_spawner_does_not_outlive_the_server(number):
    with servers.running("[pool]\ndrain_seconds = 1\n") as server:
        job = submit(server, FOREVER)
        read_until(server, job, "up")
        assistant = os.pidfd_open(named(server, "sandrun-assist"))
        kill(spawner_of(server))
        assert server.python("print(1)")["stdout"] == "1\n"
        assert not select.select([assistant], [], [], 0)[0]
        server.process.send_signal(number)
        server.process.wait(60)
        assert select.select([assistant], [], [], 30)[0]
        os.close(assistant)


# ── any order ────────────────────────────────────────────────────────────────


def test_any_schedule_of_faults_ends_every_job_once(server):
    """Random submits, cancels, deletes and kills. The seed is in the failure's output."""
    seed = int(os.environ.get("SANDRUN_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"SANDRUN_SEED={seed}")  # noqa: T201
    chance = random.Random(seed)  # noqa: S311
    steps = int(os.environ.get("SANDRUN_STEPS", "40"))
    jobs, deleted, keys = {}, set(), {}

    def again(request):
        """A request that a kill cut off is sent once more, as a client would."""
        while True:
            try:
                return request()
            except httpx.TransportError:
                reconnect(server)

    def begin():
        token = f"{chance.randrange(1 << 64):016x}"
        code = chance.choice(
            [
                f"print('{token}')",
                f"print('{token}', flush=True)\nimport time\ntime.sleep(0.3)",
                f"open('o', 'w').write('{token}')\nprint('{token}')",
                f"print('{token}', flush=True)\nimport signal\nsignal.pause()",
            ]
        )
        reply = again(
            lambda: server.client.post(
                "/submit", json={"code": code}, headers={"Idempotency-Key": token}
            )
        )
        if reply.status_code == 503:
            return
        assert reply.status_code == 200, reply.text
        jobs[reply.json()["job_id"]] = token
        keys[token] = (code, reply.json()["job_id"])

    def cancel():
        if jobs:
            job = chance.choice(list(jobs))
            again(lambda: server.client.post(f"/jobs/{job}/cancel"))

    def delete():
        if jobs and chance.random() < 0.3:
            job = chance.choice(list(jobs))
            again(lambda: server.client.delete(f"/jobs/{job}"))
            deleted.add(job)
            del jobs[job]

    def kill_zygote():
        found = zygotes_of(server)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(found), signal.SIGKILL)

    def kill_one_http():
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(http_of(server), signal.SIGKILL)

    def kill_spawner():
        if chance.random() < 0.2:
            with contextlib.suppress(StopIteration, ProcessLookupError):
                os.kill(spawner_of(server), signal.SIGKILL)

    def stop_and_go():
        pid = http_of(server)  # a stopped supervisor would never start one to be found
        os.kill(server.process.pid, signal.SIGSTOP)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.kill(server.process.pid, signal.SIGCONT)

    def upgrade():
        os.kill(server.process.pid, signal.SIGUSR2)

    def replay():
        if keys:
            token = chance.choice(list(keys))
            code, job = keys[token]
            if job in jobs:
                reply = again(
                    lambda: server.client.post(
                        "/submit", json={"code": code}, headers={"Idempotency-Key": token}
                    )
                )
                assert reply.status_code == 503 or reply.json()["job_id"] == job

    actions = [begin] * 6 + [
        cancel,
        delete,
        kill_zygote,
        replay,
        upgrade,
        stop_and_go,
        kill_spawner,
    ]
    actions += [kill_one_http] * 3
    for _ in range(steps):
        chance.choice(actions)()
    for job, token in jobs.items():
        again(lambda job=job: server.client.post(f"/jobs/{job}/cancel"))
        found = again(lambda job=job: wait_end(server, job))
        assert found["exit_reason"] in ("exited", "cancelled", "server_fault"), found
        text = again(lambda job=job: server.client.get(f"/logs/{job}").json()["stdout"])
        assert text in ("", f"{token}\n"), (text, token)  # never run twice
        if found["exit_reason"] == "exited":
            assert text == f"{token}\n"
            outputs = again(lambda job=job: server.client.get(f"/outputs/{job}").json()["files"])
            assert bool(outputs) == keys[token][0].startswith("open")
    for job in deleted:
        assert again(lambda job=job: server.client.get(f"/status/{job}").status_code) == 404
    assert again(lambda: quota(server))[0] == 0
    assert again(lambda: server.python("print('end')"))["stdout"] == "end\n"
