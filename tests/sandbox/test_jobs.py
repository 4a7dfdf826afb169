"""The main job, on the real kernel, through real HTTP. One test per promise."""

import base64
import io
import json
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
import servers

PACKAGE = {
    "main.py": "from shop import prices\nprint(prices.total())\nprices.write()\n",
    "shop/__init__.py": "",
    "shop/prices.py": (
        "import csv, json, pathlib\n"
        "here = pathlib.Path(__file__).parent\n"
        "def rows():\n"
        "    return list(csv.DictReader((here / 'data.csv').open()))\n"
        "def total():\n"
        "    return sum(int(r['price']) for r in rows())\n"
        "def write():\n"
        "    pathlib.Path('out').mkdir()\n"
        "    pathlib.Path('out/total.json').write_text(json.dumps({'total': total()}))\n"
    ),
    "shop/data.csv": "name,price\napple,3\npear,4\n",
}


@pytest.fixture(scope="module", params=["native", "python"])
def server(request):
    """PID 1 is written twice, and every promise holds for both."""
    with servers.running(f'{servers.NO_RATE_LIMIT}[pool]\ninit = "{request.param}"\n') as found:
        yield found


def finished(answer, reason="exited"):
    assert answer["exit_reason"] == reason, json.dumps(answer, indent=1)
    return answer


# ── uploads ──────────────────────────────────────────────────────────────────


def test_a_package_of_plain_files_runs_and_hands_back_its_output(server):
    answer = finished(server.run(PACKAGE, manifest={"outputs": ["out/"]}, inline=1))
    assert answer["stdout"] == "7\n"
    assert set(answer["output_files"]) == {"out/total.json"}
    (file,) = answer["outputs"]
    assert json.loads(base64.b64decode(file["data_base64"])) == {"total": 7}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_runs(server, mode):
    name = "project.tar.gz" if mode == "w:gz" else "project.tar"
    answer = server.run(archive=servers.tar_of(PACKAGE, mode=mode, name=name))
    assert finished(answer)["stdout"] == "7\n"


def test_a_tar_of_a_directory_runs_as_if_packed_from_inside(server):
    inside = {f"project/{path}": content for path, content in PACKAGE.items()}
    answer = server.run(archive=servers.tar_of(inside))
    assert finished(answer)["stdout"] == "7\n"


def test_a_zip_runs(server):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in PACKAGE.items():
            archive.writestr(path, content)
    answer = server.run(archive=("project.zip", buffer.getvalue()))
    assert finished(answer)["stdout"] == "7\n"


def test_a_job_json_in_the_archive_is_obeyed_and_the_part_wins(server):
    files = {
        "job.json": json.dumps({"entrypoint": "go.py", "args": ["a"], "env": {"K": "v"}}),
        "go.py": "import os, sys; print(sys.argv[1:], os.environ['K'])",
    }
    answer = server.run(archive=servers.tar_of(files), manifest={"args": ["b"]})
    assert finished(answer)["stdout"] == "['b'] v\n"


def test_a_wrong_job_json_in_the_archive_ends_the_job_with_the_field_named(server):
    files = {"job.json": '{"timeout": -1}', "main.py": "print(1)"}
    answer = finished(server.run(archive=servers.tar_of(files)), "upload_error")
    assert "timeout" in " ".join(answer["evidence"])


def test_an_upload_that_cannot_run_has_no_outputs(server):
    """They were the uploaded files: nothing had been snapshot when the upload was refused."""
    files = {"job.json": '{"timeout": -1}', "main.py": "print(1)", "data/in.csv": "1,2"}
    answer = finished(server.run(archive=servers.tar_of(files), inline=1), "upload_error")
    assert answer["outputs"] == []
    assert answer["output_files"] == {}
    assert answer["execution_metadata"]["output_bytes"] == 0
    assert server.client.get(f"/outputs/{answer['job_id']}").json()["total_files"] == 0


def test_a_thousand_files_come_back_in_an_archive(server):
    code = (
        "import os\nos.mkdir('many')\n"
        "for i in range(1000):\n    open(f'many/{i:04}.txt', 'w').write(str(i))\n"
    )
    answer = finished(server.python(code, outputs=["many/"]))
    data = server.client.get(f"/download/{answer['job_id']}").content
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        assert len(names) == 1000
        assert archive.extractfile("many/0999.txt").read() == b"999"


def test_a_hundred_megabytes_arrive_whole(server):
    size = 95 * 1024 * 1024
    files = {"main.py": "import os; print(os.path.getsize('big'))", "big": bytes(size)}
    answer = server.run(files, manifest={"outputs": []})
    assert finished(answer)["stdout"] == f"{size}\n"


# ── interpreters ─────────────────────────────────────────────────────────────


PROGRAMS = {
    "python3": ("main.py", "print(6 * 7)", "42\n"),
    "node": ("index.js", "console.log(6 * 7)", "42\n"),
    "bash": ("main.sh", "#!/bin/bash\nset -o pipefail\nseq 42 | tail -n 1 | tr -d ' '", "42\n"),
    "sh": ("run.sh", "#!/bin/sh\necho $((6 * 7))", "42\n"),
    "ruby": ("main.rb", "puts 6 * 7", "42\n"),
    "perl": ("main.pl", 'print 6 * 7, "\\n";', "42\n"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_interpreter_is_found_by_the_file_and_runs_it(server, name):
    found = {i["name"] for i in server.client.get("/environments").json()["interpreters"]}
    if name not in found:
        pytest.skip(f"{name} is not installed on this host")
    file, code, wanted = PROGRAMS[name]
    answer = finished(server.run({file: code}))
    assert answer["stdout"] == wanted
    assert answer["execution_metadata"]["interpreter"] == name


def test_a_c_program_is_built_and_run(server):
    files = {"main.c": '#include <stdio.h>\nint main(void) { puts("from C"); return 3; }'}
    manifest = {"build": "gcc -O1 -o prog main.c", "entrypoint": "prog"}
    answer = finished(server.run(files, manifest=manifest), "nonzero_exit")
    assert answer["stdout"] == "from C\n"
    assert answer["execution_metadata"]["exit_code"] == 3


def test_a_build_that_fails_ends_the_job(server):
    files = {"main.c": "int main(void) { return nothing; }"}
    manifest = {"build": "gcc -o prog main.c", "entrypoint": "prog"}
    answer = finished(server.run(files, manifest=manifest), "nonzero_exit")
    assert "nothing" in answer["stderr"]
    assert "build" in " ".join(answer["evidence"])


def test_what_a_build_leaves_running_does_not_meet_the_entrypoint(server):
    files = {"main.py": "import os\nprint(sorted(p for p in os.listdir('/proc') if p.isdigit()))"}
    manifest = {"build": "setsid sleep 3600 & (sleep 3600 &)", "timeout": 30}
    answer = finished(server.run(files, manifest=manifest))
    assert len(eval(answer["stdout"])) == 1, answer["stdout"]


def test_threads_subprocesses_and_multiprocessing_work(server):
    code = """
import multiprocessing, subprocess, threading
def square(n):
    return n * n
if __name__ == "__main__":
    seen = []
    threads = [threading.Thread(target=seen.append, args=(i,)) for i in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(sorted(seen))
    print(subprocess.run(["echo", "child"], capture_output=True, text=True).stdout.strip())
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(square, range(5)))
"""
    answer = finished(server.python(code))
    assert answer["stdout"].splitlines() == [
        "[0, 1, 2, 3, 4, 5, 6, 7]",
        "child",
        "fork [0, 1, 4, 9, 16]",
        "spawn [0, 1, 4, 9, 16]",
    ]


def test_args_env_and_stdin_reach_the_job(server):
    code = "import os, sys; print(sys.argv[1:], os.environ['GREETING'], sys.stdin.read())"
    answer = server.python(code, args=["-x", "ü"], env={"GREETING": "hi"}, stdin="in\nput")
    assert finished(answer)["stdout"] == "['-x', 'ü'] hi in\nput\n"


def test_a_job_may_talk_to_itself_and_to_nobody_else(server):
    code = """
import socket, threading
server = socket.create_server(("127.0.0.1", 8000))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"), daemon=True).start()
print(socket.create_connection(("127.0.0.1", 8000)).recv(5))
for address in (("1.1.1.1", 80), ("169.254.169.254", 80), ("10.0.0.1", 22)):
    try:
        socket.create_connection(address, timeout=5)
    except OSError as error:
        print(error.strerror)
"""
    answer = finished(server.python(code))
    assert answer["stdout"] == "b'hello'\n" + "Network is unreachable\n" * 3


# ── limits, explained ────────────────────────────────────────────────────────


def test_the_cpu_time_of_a_running_job_is_charged_while_it_runs(server):
    code = "import time\nwhile time.process_time() < 30: pass"
    job = server.client.post("/submit", json={"code": code}).json()["job_id"]
    began = server.client.get("/stats").json()["your_quota"]["used"]
    while server.client.get("/stats").json()["your_quota"]["used"] < began + 0.3:
        status = server.client.get(f"/logs/{job}", params={"wait": 0.2}).json()["status"]
        assert status in {"queued", "running"}
    assert server.client.delete(f"/jobs/{job}").status_code == 204


def test_a_wall_timeout_says_so(server):
    answer = finished(server.python("import time; time.sleep(60)", timeout=0.3), "wall_timeout")
    assert "0.3 s" in answer["evidence"][0]
    assert '"timeout": 0.6' in answer["remedy"]


def test_a_cpu_limit_counts_the_whole_tree(server):
    code = """
import os
for _ in range(3):
    if os.fork() == 0:
        while True: pass
while True: pass
"""
    answer = finished(server.python(code, cpu_seconds=0.5), "cpu_limit")
    assert answer["execution_metadata"]["cpu_seconds"] >= 0.5
    assert "cpu_seconds" in answer["remedy"]


def test_out_of_memory_says_so_even_if_only_a_child_died(server):
    code = """
import os
if os.fork() == 0:
    b = bytearray(1024 * 1024 * 1024)
    for i in range(0, len(b), 4096): b[i] = 1
os.wait()
print("fine")
"""
    answer = finished(server.python(code, memory_mb=64), "out_of_memory")
    assert "oom_kill" in answer["evidence"][0]
    assert '"memory_mb": 128' in answer["remedy"]


def test_files_count_as_memory(server):
    code = "open('big', 'wb').write(bytes(80 * 1024 * 1024))"
    finished(server.python(code, memory_mb=48, outputs=[]), "out_of_memory")


def test_a_process_limit_says_so(server):
    code = "import os, time\nfor _ in range(100):\n    if os.fork() == 0: time.sleep(30)\n"
    answer = finished(server.python(code, processes=8), "process_limit")
    assert "processes" in answer["remedy"]


def test_a_full_disk_says_so(server):
    code = "open('big', 'wb').write(bytes(50 * 1024 * 1024))"
    answer = finished(server.python(code, storage_mb=10, outputs=[]), "storage_limit")
    assert "storage_mb" in answer["remedy"]


def test_too_many_files_say_so(server):
    code = "for i in range(10**6): open(str(i), 'w').close()"
    answer = finished(server.python(code, storage_mb=5, outputs=[]), "storage_limit")
    assert "inodes" in answer["evidence"][0]


def test_open_files_are_limited(server):
    code = "import os\nfds = [os.open('/dev/null', 0) for _ in range(100)]"
    answer = finished(server.python(code, open_files=32), "nonzero_exit")
    assert "Too many open files" in answer["stderr"]


def test_a_flood_of_output_keeps_head_and_tail(server):
    code = "for i in range(400_000): print(f'{i:08} ' + 'x' * 40)"
    answer = finished(server.python(code))
    log = server.client.get(f"/logs/{answer['job_id']}").json()
    assert log["dropped_bytes"] > 0
    assert log["stdout"].startswith("00000000 ")
    assert log["stdout"].endswith("00399999 " + "x" * 40 + "\n")


def test_a_forbidden_system_call_says_so(server):
    code = "import ctypes; ctypes.CDLL(None).unshare(0x10000000)"
    finished(server.python(code), "syscall_denied")


def test_a_signal_says_so(server):
    answer = finished(server.python("import os; os.kill(os.getpid(), 11)"), "signaled")
    assert answer["execution_metadata"]["signal"] == 11


def test_a_grandchild_that_holds_stdout_ends_with_the_job(server):
    code = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
os.wait()
print("done")
"""
    answer = finished(server.python(code))
    assert answer["stdout"] == "done\n"
    assert answer["execution_metadata"]["wall_time_ms"] < 30_000


# ── the job's life over HTTP ─────────────────────────────────────────────────


def test_the_log_can_be_followed_while_the_job_runs(server):
    code = "import sys\nprint('first', flush=True)\nsys.stdin.read()\nprint('last')"
    slow = "import time\nprint('first', flush=True)\ntime.sleep(0.5)\nprint('last')"
    del code
    job = server.post("/submit", {"main.py": slow}).json()
    seen = []
    with server.client.stream("GET", f"/logs/{job['job_id']}/stream") as response:
        for text in response.iter_text():
            if not seen:
                status = server.client.get(f"/status/{job['job_id']}").json()["status"]
            seen.append(text)
    assert "".join(seen) == "first\nlast\n"
    assert status == "running"


def test_submit_status_outputs_download_and_then_it_is_gone(server):
    job = server.post("/submit", {"main.py": "open('a.txt', 'w').write('A')"}).json()
    job_id = job["job_id"]
    assert job["status"] == "queued"
    log = server.client.get(f"/logs/{job_id}", params={"wait": 20})
    assert log.status_code == 200
    with server.client.stream("GET", f"/logs/{job_id}/stream") as response:
        response.read()
    status = server.client.get(f"/status/{job_id}").json()
    assert status["status"] == "completed"
    (file,) = server.client.get(f"/outputs/{job_id}").json()["files"]
    assert (file["path"], file["size"]) == ("a.txt", 1)
    assert server.client.get(file["download_url"]).content == b"A"
    with_view = server.client.get(f"/download/{job['view_id']}")
    assert with_view.status_code == 200
    assert server.client.get(f"/status/{job_id}").status_code == 200, "a view never deletes"
    archive = server.client.get(f"/download/{job_id}")
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        assert tar.getnames() == ["a.txt"]
    server.client.close()
    server.__post_init__()
    gone = _until_gone(server, job_id)
    assert gone.json()["code"] == "not_found"


def _until_gone(server, job_id):
    """Deletion follows the client's last acknowledgement, a moment after its last read."""
    done = threading.Event()
    for _ in range(200):
        response = server.client.get(f"/status/{job_id}")
        if response.status_code == 404:
            return response
        done.wait(0.02)
    raise AssertionError("the job is still there")


def test_a_running_job_can_be_cancelled_and_keeps_its_log(server):
    code = "import time; print('here', flush=True); time.sleep(600)"
    job = server.post("/submit", {"main.py": code}).json()
    with server.client.stream("GET", f"/logs/{job['job_id']}/stream") as response:
        next(response.iter_text())
        answer = server.client.post(f"/jobs/{job['job_id']}/cancel")
        assert answer.status_code == 200
    log = server.client.get(f"/logs/{job['job_id']}").json()
    status = server.client.get(f"/status/{job['job_id']}").json()
    assert (status["exit_reason"], log["stdout"]) == ("cancelled", "here\n")


def test_curl_does_what_the_readme_says(server, tmp_path):
    name, data = servers.tar_of({"main.py": "print('by curl')"})
    Path(tmp_path, name).write_bytes(data)
    out = subprocess.run(
        ["curl", "-sS", "-F", f"files=@{tmp_path}/{name}",
         "-F", 'manifest={"entrypoint":"main.py"}', f"{server.url}/run"],
        check=True, capture_output=True, text=True,
    ).stdout
    assert json.loads(out)["stdout"] == "by curl\n"


# ── isolation, as seen from inside ───────────────────────────────────────────


LOOK = """
import json, os, socket
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return error.strerror
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "ids": os.getresuid() + os.getresgid(),
    "groups": os.getgroups(),
    "caps": [status[k].strip() for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "nnp": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
    "fds": sorted(int(f) for f in os.listdir("/proc/self/fd"))[:-1],
    "root": sorted(os.listdir("/")),
    "dev": sorted(os.listdir("/dev")),
    "pids": sorted(int(p) for p in os.listdir("/proc") if p.isdigit()),
    "host": socket.gethostname(),
    "cgroup": {line.split(":", 2)[2] for line in open("/proc/self/cgroup").read().split()}
        == {"/"} or open("/proc/self/cgroup").read(),
    "env": dict(os.environ),
    "uid_map": read("/proc/self/uid_map").split(),
    "proc_sys": os.path.exists("/proc/sys"),
    "init_environ": read("/proc/1/environ"),
}))
"""


def test_a_job_sees_nothing_but_itself(server):
    seen = json.loads(finished(server.python(LOOK))["stdout"])
    assert seen["ids"] == [1000] * 6
    assert seen["groups"] == []
    assert seen["caps"] == ["0" * 16] * 5
    assert (seen["nnp"], seen["seccomp"]) == ("1", "2")
    assert seen["fds"] == [0, 1, 2]
    assert "root" not in seen["root"]
    assert set(seen["root"]) <= {
        "bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "opt", "proc",
        "run", "sbin", "tmp", "usr", "var", "work",
    }
    assert seen["dev"] == [
        "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero",
    ]
    assert 1 not in seen["pids"]
    assert len(seen["pids"]) == 1
    assert seen["host"] == "sandrun"
    assert seen["cgroup"] is True
    assert seen["env"] == {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/sandrun", "USER": "sandrun",
        "LOGNAME": "sandrun", "SHELL": "/bin/sh", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC",
    }
    inside, outside, count = (int(n) for n in seen["uid_map"])
    assert (inside, count) == (1000, 2)
    assert outside > 0
    assert seen["proc_sys"] is False
    assert seen["init_environ"] in ("No such file or directory", "Permission denied")


def test_no_two_live_jobs_share_a_host_uid(server):
    code = "import time; print(open('/proc/self/uid_map').read(), flush=True); time.sleep(1)"
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.python(code))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    maps = {answer["stdout"] for answer in answers}
    assert len(maps) == 4


def test_the_root_is_read_only_and_the_work_directory_is_not(server):
    code = """
import os
for path in ("/usr/x", "/etc/x", "/x", "/dev/x", "/proc/x", "/run/x", "/opt/env/x"):
    try:
        open(path, "w")
        print("wrote", path)
    except OSError as error:
        print(error.errno in (1, 2, 13, 30))
for path in ("/work/x", "/tmp/x", "/home/sandrun/x", "/dev/shm/x"):
    open(path, "w").write("x")
    os.unlink(path)
print("ok")
"""
    answer = finished(server.python(code))
    assert answer["stdout"] == "True\n" * 7 + "ok\n"
