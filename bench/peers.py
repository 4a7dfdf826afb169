"""Other sandboxes, if they are on PATH, with layers comparable to ours. I/O.

Comparable: pid, net, mount, ipc, uts and user namespaces, a read-only /usr, /proc, a
tmpfs to work in, an ordinary uid, no capabilities, and our own seccomp program where
the peer takes one. Cgroups only where the peer makes them itself (nsjail, crun).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import bare
from sandrun.pool import seccomp

Runner = Callable[[tuple[str, ...]], bare.Run]  # argv of the bare job → one run of it inside
_LIBS = [name for name in ("bin", "lib", "lib64", "sbin") if os.path.islink(f"/{name}")]


def found(directory: Path) -> Iterator[tuple[str, Runner]]:
    """Name and runner of each peer; ``directory`` holds the scripts and is shown at /work."""
    for name, make in (("bubblewrap", _bubblewrap), ("nsjail", _nsjail), ("crun", _crun)):
        program = shutil.which({"bubblewrap": "bwrap"}.get(name, name))
        if program:
            yield name, make(program, directory)
    if program := shutil.which("go-judge"):
        yield "go-judge", _GoJudge(program, directory)


def _inside(argv: tuple[str, ...], directory: Path) -> tuple[str, ...]:
    return tuple(word.replace(str(directory), "/work") for word in argv)


def _bubblewrap(program: str, directory: Path) -> Runner:
    filter_fd = os.memfd_create("filter", 0)
    os.write(filter_fd, seccomp.job_program("default"))
    command = (
        program, "--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000",
        "--hostname", "sandrun", "--new-session", "--die-with-parent", "--cap-drop", "ALL",
        "--ro-bind", "/usr", "/usr",
        *(word for name in _LIBS for word in ("--symlink", os.readlink(f"/{name}"), f"/{name}")),
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
        "--ro-bind", str(directory), "/work", "--chdir", "/work",
        "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
        "--seccomp", str(filter_fd),
    )  # fmt: skip

    def run(argv: tuple[str, ...]) -> bare.Run:
        os.lseek(filter_fd, 0, os.SEEK_SET)
        return bare.run((*command, "--", *_inside(argv, directory)))

    return run


def _nsjail(program: str, directory: Path) -> Runner:
    command = (
        program, "-Mo", "-Q", "--user", "1000", "--group", "1000", "--hostname", "sandrun",
        "-R", "/usr",
        *(word for name in _LIBS for word in ("-s", f"{os.readlink(f'/{name}')}:/{name}")),
        "-R", f"{directory}:/work", "-T", "/tmp", "--cwd", "/work",
        "--cgroup_mem_max", str(512 << 20), "--cgroup_pids_max", "64",
        "--seccomp_string", "KILL { ptrace, mount, umount2, bpf, keyctl } DEFAULT ALLOW",
    )  # fmt: skip
    return lambda argv: bare.run((*command, "--", *_inside(argv, directory)))


def _crun(program: str, directory: Path) -> Runner:
    bundle = directory / "bundle"
    (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
    for name in _LIBS:
        with contextlib.suppress(FileExistsError):
            os.symlink(os.readlink(f"/{name}"), bundle / "rootfs" / name)
    ro = ["bind", "ro", "nosuid", "nodev"]

    def run(argv: tuple[str, ...]) -> bare.Run:
        spec = {
            "ociVersion": "1.0.2",
            "hostname": "sandrun",
            "root": {"path": "rootfs", "readonly": True},
            "process": {
                "args": list(_inside(argv, directory)),
                "cwd": "/work",
                "env": ["PATH=/usr/bin:/bin"],
                "user": {"uid": 1000, "gid": 1000},
                "noNewPrivileges": True,
            },
            "mounts": [
                {"destination": "/usr", "source": "/usr", "type": "bind", "options": ro},
                {"destination": "/work", "source": str(directory), "type": "bind", "options": ro},
                {"destination": "/proc", "source": "proc", "type": "proc"},
                {"destination": "/tmp", "source": "tmpfs", "type": "tmpfs"},
            ],
            "linux": {
                "resources": {"memory": {"limit": 512 << 20}, "pids": {"limit": 64}},
                "namespaces": [
                    {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")
                ],
            },
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        return bare.run((program, "run", "--bundle", str(bundle), f"sandrun-bench-{os.getpid()}"))

    return run


class _GoJudge:
    """Its HTTP server with preforked containers, as its users run it."""

    URL = "127.0.0.1:15050"

    def __init__(self, program: str, directory: Path) -> None:
        self.directory = directory
        self.server = subprocess.Popen(
            (program, "-http-addr", self.URL, "-silent", "-pre-fork", "4"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __call__(self, argv: tuple[str, ...]) -> bare.Run:
        import time

        files = {
            Path(word).name: {"content": Path(word).read_text()}
            for word in argv
            if word.startswith(str(self.directory))
        }
        command = {
            "args": [
                Path(word).name if word.startswith(str(self.directory)) else word for word in argv
            ],
            "env": ["PATH=/usr/bin:/bin"],
            "files": [{"content": ""}, *({"name": n, "max": 10240} for n in ("stdout", "stderr"))],
            "cpuLimit": 10**10,
            "memoryLimit": 512 << 20,
            "procLimit": 64,
            "copyIn": files,
        }
        ask = urllib.request.Request(
            f"http://{self.URL}/run",
            json.dumps({"cmd": [command]}).encode(),
            {"Content-Type": "application/json"},
        )
        start = time.perf_counter()
        with urllib.request.urlopen(ask, timeout=30) as answer:
            result = json.load(answer)[0]
        wall = time.perf_counter() - start
        if result["status"] != "Accepted":
            raise RuntimeError(str(result))
        return bare.Run(wall, result["time"] / 1e9)

    def close(self) -> None:
        """End the server."""
        self.server.terminate()
        self.server.wait(10)
