"""One build from outside: starts its sandbox and its proxy, waits, reports.
Runs as: root (supervisor, or ``sandrun env``). I/O; blocks, so call it in a thread.

The installer is uv: five to a hundred times faster than pip, and it locks with
hashes. It runs in a build sandbox (``builder.py``) whose network, if the index
needs one at all, ends at ``proxy.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any, Final, NamedTuple

import msgspec

from sandrun.channel import Channel, Closed, close_all, pair
from sandrun.errors import HostError, ProtocolError
from sandrun.pool.builder import WORK, Build, Built, FromBuilder, Listening
from sandrun.pool.package_index import Index, redact
from sandrun.pool.proxy import Settings
from sandrun.pool.workshop import PackageError, Workshop

UV: Final = "/opt/uv"  # inside the sandbox
CA_FILE: Final = "/etc/ssl/ca.pem"
_ELF: Final = b"\x7fELF"
_WORDS: Final = 2000  # characters of an installer's message that we hand on
_GRACE_S: Final = 15.0  # a builder that has not answered by then is killed


def find_uv() -> str:
    """Path of the uv binary. Raises :class:`HostError` with the cure."""
    try:
        import uv  # noqa: PLC0415 - an optional dependency

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        pass
    for directory in os.get_exec_path():
        program = shutil.which("uv", path=directory)
        if program:
            with open(program, "rb") as file:
                if file.read(4) == _ELF:  # not the shim of a version manager
                    return program
    raise HostError("uv, which installs packages, is not on PATH", "pip install uv")


class Surroundings(NamedTuple):
    """What an installer other than uv needs. ``settings``: of its proxy, None for no network."""

    env: dict[str, str]
    read_only: tuple[tuple[str, str], ...]
    settings: Settings | None


class Installer:
    """Runs installers for one host: same index, same ids, same filter."""

    def __init__(
        self,
        index: Index,
        uid: int,
        program: bytes,
        *,
        private_hosts: tuple[str, ...] = (),
        file_hosts: tuple[str, ...] = (),
        timeout_s: float = 1800.0,
        control: tuple[tuple[str, ...], tuple[int, ...]] = ((), ()),
    ) -> None:
        self.index = index
        self.uid = uid  # of the installer; the proxy's is the one below
        self.program = program
        self.private_hosts = private_hosts
        self.file_hosts = file_hosts
        self.timeout_s = timeout_s  # of one run
        self.control = control  # a job group's control files: names, descriptors
        self.cpu_seconds = 0.0  # used by all runs so far
        self._process: subprocess.Popen[bytes] | None = None
        self.killed = False
        self.uv = find_uv()
        self._default_index: str | None = None

    def run(
        self,
        workshop: Workshop,
        commands: tuple[tuple[str, ...], ...],
        *,
        projects: tuple[str, ...] = (),
        writable: tuple[tuple[str, str], ...] = (),
        surroundings: Surroundings | None = None,
    ) -> str:
        """Run ``commands`` in ``workshop``, at :data:`WORK`; their last words. Raises
        :class:`PackageError`.

        ``projects``: names whose index pages tell where the files are.
        ``surroundings``: for another installer than uv.
        """
        own = surroundings is None
        if surroundings is None:
            network = bool(projects) and self.index.uses_network
            settings = self.proxy_settings(projects) if network else None
            surroundings = Surroundings(self._environment(), self._read_only(), settings)
        build = Build(
            commands=commands,
            env=surroundings.env,
            uid=self.uid,
            program=self.program,
            # multiprocessing makes its semaphores in /dev/shm
            writable=((str(workshop.work), WORK), (str(workshop.shm), "/dev/shm"), *writable),
            read_only=surroundings.read_only,
            network=surroundings.settings is not None,
            timeout_s=self.timeout_s,
            control_files=self.control[0],
        )
        result = self._build(build, surroundings.settings)
        if result.timed_out:
            raise PackageError(f"installing took longer than {self.timeout_s:g} s")
        if result.command < 0:
            raise PackageError(result.text, fault=True)
        if result.status:
            words = redact(result.text).replace(WORK + "/", "").strip()
            # uv ends with the cause, npm with how it is used
            words = words[-_WORDS:] if own else words[:_WORDS]
            raise PackageError(words or f"the installer ended with {result.status}")
        return redact(result.text)

    def kill(self) -> None:
        """End what runs, from another thread; no run after it begins."""
        self.killed = True
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)

    def _build(self, build: Build, settings: Settings | None) -> Built:
        if self.killed:
            raise PackageError("the server is stopping", fault=True)
        ours, theirs = pair()
        # Its PDEATHSIG fires at the end of this thread: a pool's threads stay.
        process = self._process = _exec("sandrun.pool.builder", theirs)
        theirs.close()
        received: Any = FromBuilder
        channel: Channel[Build, FromBuilder] = Channel(ours, received)
        proxy: subprocess.Popen[bytes] | None = None
        answered = False
        try:
            ours.settimeout(build.timeout_s + _GRACE_S)
            channel.send(build, self.control[1])
            while True:
                message, fds = channel.receive()
                if isinstance(message, Built):
                    close_all(fds)
                    answered = True  # its last words: it ends by itself, and is counted
                    if message.status and proxy is not None and proxy.poll() is not None:
                        raise PackageError("the proxy of the build sandbox ended", fault=True)
                    return _with_refusals(message, proxy)
                if isinstance(message, Listening) and len(fds) == 1 and settings and not proxy:
                    proxy = self._start_proxy(socket.socket(fileno=fds[0]), settings)
                else:
                    close_all(fds)
        except (Closed, ProtocolError, TimeoutError, OSError) as error:
            raise PackageError(
                f"the build sandbox failed: {error or 'it ended'}", fault=True
            ) from error
        finally:
            channel.close()
            if not answered:
                # Popen.kill() would look first, and take what _reap() wants to know.
                os.kill(process.pid, signal.SIGKILL)
            self._process = None
            self.cpu_seconds += _reap(process)
            if proxy is not None:
                proxy.kill()
                proxy.communicate()

    def _start_proxy(self, listener: socket.socket, settings: Settings) -> subprocess.Popen[bytes]:
        process = _exec(
            "sandrun.pool.proxy", listener, str(self.uid - 1), stdin=subprocess.PIPE, said=True
        )
        listener.close()
        assert process.stdin is not None
        process.stdin.write(msgspec.msgpack.encode((settings, self.program)))
        process.stdin.close()
        process.stdin = None  # or communicate() would flush it once more
        return process

    def proxy_settings(self, projects: tuple[str, ...]) -> Settings:
        """What the build may reach."""
        index = self.index
        urls = [url for url in index.urls if url.startswith(("http://", "https://"))]
        if not index.index_url and not index.no_index:
            urls.append(self.default_index)
        named = Index(extra_index_urls=tuple(urls))
        upstream = index.proxy.get("HTTPS_PROXY", "") or index.proxy.get("ALL_PROXY", "")
        return Settings(
            hosts=(*named.remote_hosts, *self.file_hosts),
            private_hosts=self.private_hosts,
            index_urls=tuple(urls),
            projects=projects,
            ports=named.remote_ports,
            ca_file=index.ca_file,
            upstream=upstream,
        )

    @property
    def default_index(self) -> str:
        """The index that uv asks when it is told none: uv knows, we do not name one."""
        if self._default_index is None:
            out = subprocess.run(
                (self.uv, "pip", "compile", "-", "--emit-index-url", "--no-header", "-q", "-n"),
                input=b"",
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"UV_NO_CONFIG": "1", "UV_PYTHON": sys.executable, "HOME": "/nonexistent"},
                check=False,
            ).stdout.decode()
            words = out.split()
            if "--index-url" not in words:
                raise PackageError("uv does not tell its default index; set [packages] index_url")
            self._default_index = words[words.index("--index-url") + 1]
        return self._default_index

    def _environment(self) -> dict[str, str]:
        env = self.index.environment()
        if self.index.ca_file:
            env["SSL_CERT_FILE"] = CA_FILE
        return env | {
            "PATH": "/usr/bin:/bin",
            "HOME": f"{WORK}/home",
            "TMPDIR": f"{WORK}/tmp",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "UV_CACHE_DIR": f"{WORK}/cache",
            "UV_NO_CONFIG": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_PROGRESS": "1",
            "UV_LINK_MODE": "copy",
            "UV_HTTP_TIMEOUT": "60",
            "UV_CONCURRENT_DOWNLOADS": "8",
        }

    def _read_only(self) -> tuple[tuple[str, str], ...]:
        binds = [(self.uv, UV)]
        if self.index.ca_file:
            binds.append((os.path.realpath(self.index.ca_file), CA_FILE))
        for path in dict.fromkeys(self.index.readable_paths):
            if f"{path}/".startswith(("/dev/shm/", f"{WORK}/")):
                raise PackageError(
                    f"{path} cannot be seen in a build sandbox, which has one of its own",
                    fault=True,
                )
            if not os.path.exists(path):
                continue  # pip passes over a directory that is not there, and so do we
            needed = 0o005 if os.path.isdir(path) else 0o004
            if os.stat(path).st_mode & needed != needed:
                raise PackageError(
                    f"{path} cannot be read by the installer's user; chmod -R a+rX it", fault=True
                )
            if not path.startswith("/usr/"):
                binds.append((path, path))
        return tuple(binds)


def _reap(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; CPU seconds of it and of all that it has waited for."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # Installer.kill() has seen its end: that is a Popen's way
        return 0.0
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _with_refusals(built: Built, proxy: subprocess.Popen[bytes] | None) -> Built:
    """An installer only sees "403"; what the proxy refused and why, it has said itself."""
    if not built.status or proxy is None or proxy.stderr is None:
        return built
    proxy.kill()
    lines = dict.fromkeys(proxy.stderr.read(_WORDS).decode("utf-8", "replace").splitlines())
    refusals = [line for line in lines if line.startswith("the proxy refused")]
    return msgspec.structs.replace(built, text="\n".join((built.text, *refusals[:3])))


def _exec(
    module: str,
    sock: socket.socket,
    *more: str,
    stdin: int = subprocess.DEVNULL,
    said: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a module of ours with one socket and nothing else."""
    return subprocess.Popen(
        (sys.executable, "-I", "-m", module, str(sock.fileno()), *more),
        stdin=stdin,
        stderr=subprocess.PIPE if said else None,
        pass_fds=(sock.fileno(),),
        env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
    )
