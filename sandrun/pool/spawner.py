"""Makes the zygotes of one environment. Runs as: root of a user namespace of its own.

Started by exec, so it inherits nothing of the supervisor's memory; it imports
little, because every zygote is a fork of it. It never sees a byte of a client or
of a job. Its life:

1. As root of the host it builds the environment's root file system in a mount
   namespace of its own and moves into it (:data:`PREPARE_STEPS`).
2. It enters a user namespace *O* that holds 65,536 ids of the host, none of them
   root's. From then on it owns sandboxes and nothing of the host.
3. For each ``Spawn`` it clones a PID 1 in new user, pid, mount, ipc and uts
   namespaces (children of O) and in a network without anything (``networks.py``),
   maps the sandbox's two ids, and goes on. PID 1
   boots by itself (``zygote/boot.py``) and reports to the supervisor over the
   same socket.

Zygotes are children of the supervisor (CLONE_PARENT): it reaps them, and a
spawner can be replaced without them. Nothing is forked here but zygotes and, for
``fork`` mode, the template.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

from sandrun.channel import Channel, Closed, close_all
from sandrun.errors import SetupError
from sandrun.messages import (
    BootFailed,
    FromSpawner,
    InterpreterInfo,
    Prepare,
    Spawn,
    Spawned,
    SpawnerReady,
    ToSpawner,
)
from sandrun.pool import mounts
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE, MS, PR, MountAttr
from sandrun.pool.native.launcher import NEW_NAMESPACES, Launcher, order_of
from sandrun.pool.networks import Networks
from sandrun.pool.templates import Templates
from sandrun.pool.zygote import boot, child

OUTER_IDS: Final = 65_536
_NEW_ROOT: Final = "/tmp"
NOT_STARTED: Final = 127  # as a shell says it
PROBE_TIMEOUT_S: Final = 5.0  # of `python3 --version` and the like
ASSISTANTS_MAX: Final = 100  # in a spawner's life
PROBE_MAX_BYTES: Final = 64 * 1024
_COPY_MAX_BYTES: Final = 4 * 1024 * 1024
# (where it lies below mounts.RUNTIME, our file)
_RUNTIME_FILES: Final = (
    ("python/sitecustomize.py", "warm_python.py"),
    ("warm_node.js", "warm_node.js"),
)


# ── 1. the root file system ──────────────────────────────────────────────────


def private_namespaces() -> None:
    """Mounts, System V IPC and host name of our own."""
    libc.unshare(CLONE.NEWNS | CLONE.NEWIPC | CLONE.NEWUTS)
    # systemd mounts / shared: without this our mounts would appear on the host.
    libc.mount("none", "/", "none", MS.REC | MS.PRIVATE)


def top_level() -> list[tuple[str, str]]:
    """For :func:`mounts.plan`: what this host has at ``/``."""
    found = []
    for name in mounts.TOP_LEVEL:
        path = f"/{name}"
        if os.path.islink(path):
            found.append((name, os.readlink(path)))
        elif os.path.isdir(path):
            found.append((name, ""))
    return found


def _plan(prepare: Prepare) -> tuple[mounts.Entry, ...]:
    zygote_dir = os.path.dirname(boot.__file__)
    return mounts.plan(
        top_level(),
        [name for name in mounts.ETC_COPIED if os.path.exists(f"/etc/{name}")],
        prepare.environment_dir,
        [(name, _read(f"{zygote_dir}/{source}")) for name, source in _RUNTIME_FILES],
    )


def build_root(entries: tuple[mounts.Entry, ...]) -> None:
    """Make the tree of ``entries`` at :data:`_NEW_ROOT`."""
    # Copies of the trees are taken first: the new root hides some of the host.
    trees = {
        entry.path: _bindable(entry.source) for entry in entries if isinstance(entry, mounts.Bind)
    }
    copies = {
        entry.path: _copied(entry.source) for entry in entries if isinstance(entry, mounts.Copy)
    }
    libc.mount("sandrun", _NEW_ROOT, "tmpfs", MS.NOSUID, "mode=755,size=32m")
    for entry in entries:
        path = _NEW_ROOT + entry.path
        match entry:
            case mounts.Directory(_, mode):
                os.makedirs(path, mode, exist_ok=True)
            case mounts.File(_, content, mode):
                _write(path, content, mode)
            case mounts.Symlink(_, target):
                os.symlink(target, path)
            case mounts.Device(_, major, minor):
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
                os.chmod(path, 0o666)  # noqa: S103 - as devices are; mknod obeys the umask
            case mounts.Bind():
                libc.move_mount(trees[entry.path], path)
                os.close(trees[entry.path])
            case mounts.Copy():
                _paste(copies[entry.path], path)


def _bindable(source: str) -> int:
    tree = libc.open_tree(source)
    libc.mount_setattr(
        tree, MountAttr.RDONLY | MountAttr.NOSUID | MountAttr.NODEV | MountAttr.NOATIME
    )
    return tree


def _copied(source: str) -> dict[str, bytes | str | None]:
    """A small tree in memory: content, link target, or None for a directory."""
    tree: dict[str, bytes | str | None] = {}
    left = _COPY_MAX_BYTES
    stack = [(source, "")]
    while stack:
        path, relative = stack.pop()
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            tree[relative] = os.readlink(path)
        elif stat.S_ISDIR(info.st_mode):
            tree[relative] = None
            stack += ((f"{path}/{name}", f"{relative}/{name}") for name in os.listdir(path))
        elif stat.S_ISREG(info.st_mode) and info.st_mode & stat.S_IROTH:
            left -= info.st_size
            if left < 0:
                break
            tree[relative] = _read(path)
    return tree


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _paste(tree: dict[str, bytes | str | None], target: str) -> None:
    for relative, content in tree.items():
        path = target + relative
        if content is None:
            os.makedirs(path, exist_ok=True)
        elif isinstance(content, str):
            os.symlink(content, path)
        else:
            _write(path, content, 0o644)


def _write(path: str, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def _compile_runtime(prepare: Prepare) -> None:
    """Let the environment's own python3 compile our warm script, which every door runs.

    Saves 7 ms of CPU in each sandbox. Without a python3 there is nothing to do.
    """
    spec = prepare.interpreters.get("python3")
    if spec is None:
        return
    path = f"{mounts.WARM_PYTHON}/sitecustomize.py"
    code = (
        "import py_compile as p; "
        f"p.compile({path!r}, doraise=True, invalidation_mode=p.PycInvalidationMode.UNCHECKED_HASH)"
    )
    argv = (spec.command[0], "-I", "-S", "-c", code)
    env = mounts.job_environment(search_path(prepare))
    pid = _start(argv, env, lambda: os.chroot(_NEW_ROOT), 2)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, NOT_STARTED):
        raise OSError(0, f"python3 cannot compile {path}")


def move_in() -> None:
    """pivot_root onto the new root; the host's tree is gone from our sight.

    A fully visible proc must stay in our mount namespace: without one the kernel
    refuses to mount proc in the sandboxes' (mount_too_revealing). Each sandbox
    puts its own over it, and the one below is locked.
    """
    libc.mount("proc", f"{_NEW_ROOT}/proc", "proc", MS.NOSUID | MS.NODEV | MS.NOEXEC)
    os.chdir(_NEW_ROOT)
    libc.pivot_root(".", ".")
    libc.umount(".")
    os.chdir("/")
    libc.mount("none", "/", "none", MS.REMOUNT | MS.BIND | MS.RDONLY | MS.NOSUID | MS.NOATIME)


# ── 2. the outer user namespace ──────────────────────────────────────────────


def _enter_user_namespace(uid_base: int) -> None:
    """Become root of a namespace whose ids are ``uid_base`` and up on the host.

    The map of a new namespace must be written by someone privileged outside of
    it: a child that stays outside does it for us.
    """
    entered_r, entered_w = os.pipe()
    parent = os.getpid()
    writer = os.fork()
    if writer == 0:
        _write_maps_and_exit(parent, entered_r, uid_base)
    libc.unshare(CLONE.NEWUSER)
    os.write(entered_w, b"!")
    _, status = os.waitpid(writer, 0)
    os.close(entered_r)
    os.close(entered_w)
    if status:
        raise OSError(os.waitstatus_to_exitcode(status), "the id map could not be written")
    become_root()


def become_root() -> None:
    """Of the user namespace that we have just entered."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # The change of ids made our /proc files root's; children need to be mapped by us.
    libc.prctl(PR.SET_DUMPABLE, 1)
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)  # a change of ids clears it


def _write_maps_and_exit(parent: int, entered_r: int, uid_base: int) -> NoReturn:
    code = 0
    try:
        os.read(entered_r, 1)
        write_id_maps(parent, 0, uid_base, OUTER_IDS)
    except OSError as error:
        code = error.errno or 1
    os._exit(code)


def write_id_maps(pid: int, inside: int, outside: int, count: int) -> None:
    """Map ids ``inside``... of ``pid``'s user namespace to ``outside``... of ours."""
    line = f"{inside} {outside} {count}\n".encode()
    for name in ("gid_map", "uid_map"):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)


# ── 3. zygotes ───────────────────────────────────────────────────────────────


def find_interpreters(prepare: Prepare) -> tuple[InterpreterInfo, ...]:
    """Those of the configured interpreters that the new root has, with versions."""
    path = search_path(prepare)
    found = [
        (name, spec, program)
        for name, spec in prepare.interpreters.items()
        if (program := _on_path(spec.command[0], path))
    ]
    env = mounts.job_environment(path)
    probes = [
        _probe((program, "version" if name == "go" else "--version"), env)
        for name, _, program in found
    ]
    return tuple(
        InterpreterInfo(
            name=name,
            path=program,
            extensions=spec.extensions,
            version=_first_line(*probe),
            mode=spec.mode,
        )
        for (name, spec, program), probe in zip(found, probes, strict=True)
    )


# By hand what shutil and subprocess do: every module imported here is copied into
# every zygote, and these two bring thirty.


def _on_path(command: str, path: str) -> str:
    """Where an executable is, or ""."""
    places = [command] if "/" in command else [f"{place}/{command}" for place in path.split(":")]
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    return ""


def _start(
    argv: tuple[str, ...], env: dict[str, str], enter: Callable[[], None], output: int
) -> int:
    """Start a program with its output on a descriptor, after ``enter()``; its pid.

    Its exit status is NOT_STARTED if there is no such program.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        output = child.above(output)
        null = child.above(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        for target, fd in enumerate((null, output, output)):
            os.dup2(fd, target)
        os.closerange(3, 1 << 20)
        enter()
        for number in (signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir("/")
        os.execvpe(argv[0], argv, env)
    finally:
        os._exit(NOT_STARTED)


def _become_job() -> None:
    os.setgroups([])
    os.setresgid(mounts.GID, mounts.GID, mounts.GID)
    os.setresuid(mounts.JOB_UID, mounts.JOB_UID, mounts.JOB_UID)


def _probe(argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, int]:
    """Start a program as the job's uid: its pid, and where its output can be read."""
    out_r, out_w = os.pipe()
    pid = _start(argv, env, _become_job, out_w)
    os.close(out_w)
    return pid, out_r


def _first_line(pid: int, out_r: int) -> str:
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    output = b""
    poll = select.poll()
    poll.register(out_r, select.POLLIN)
    while len(output) < PROBE_MAX_BYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            os.kill(pid, signal.SIGKILL)
            break
        data = os.read(out_r, 4096)
        if not data:
            break
        output += data
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(out_r)
    _, status = os.waitpid(pid, 0)
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[0][:200] if lines and status == 0 else ""


def search_path(prepare: Prepare) -> str:
    """PATH of this environment's jobs."""
    if prepare.environment_dir:
        return f"{mounts.ENVIRONMENT}/bin:{mounts.PATH}"
    return mounts.PATH


def spawn(
    channel: Channel[FromSpawner, ToSpawner],
    plan: boot.Plan,
    order: Spawn,
    fds: list[int],
    networks: Networks,
    template: socket.socket | None = None,
    launcher: Launcher | None = None,
) -> None:
    """Clone one PID 1, map its ids, tell the supervisor; it boots by itself."""
    ours, theirs = socket.socketpair()
    inside_o = mounts.JOB_UID + 2 * order.slot
    word = b"!"
    failed = 0
    assists: tuple[int, ...] = ()
    try:
        if launcher:
            word = order_of(order)
            gate, warm = theirs.fileno(), template.fileno() if template else -1
            network = networks.of(order.slot, order.living)
            pid, failed, end = launcher.start(channel.fileno(), gate, fds, warm, network)
            assists = (end,)
        else:
            pid = _clone(networks, order)
    except (OSError, SetupError) as error:
        ours.close()
        theirs.close()
        step = error.step if isinstance(error, SetupError) else "clone"
        channel.send(
            BootFailed(zygote=order.zygote, step=step, errno=error.errno or 0, detail=str(error))
        )
        return
    if pid == 0:
        ours.close()
        boot.run(channel, plan, order, fds, theirs, template)
    theirs.close()
    try:
        if failed:
            raise OSError(failed, f"PID 1 cannot be executed: {os.strerror(failed)}")
        write_id_maps(pid, mounts.JOB_UID, inside_o, 2)
        channel.send(Spawned(zygote=order.zygote, pid=pid), assists)
        ours.send(word)
    except OSError as error:
        # PID 1 sees the end of its socket and exits without having done anything.
        channel.send(Spawned(zygote=order.zygote, pid=pid))
        channel.send(
            BootFailed(
                zygote=order.zygote, step="id_maps", errno=error.errno or 0, detail=str(error)
            )
        )
    finally:
        ours.close()


def _clone(networks: Networks, order: Spawn) -> int:
    networks.enter(order.slot, order.living)
    pid = -1
    try:
        pid = libc.clone(NEW_NAMESPACES | CLONE.PARENT, signal.SIGCHLD)
    finally:
        if pid:
            networks.leave()
        else:  # PID 1 stays there
            networks.close()
    return pid


def prepare_root(prepare: Prepare, native: list[int]) -> tuple[Launcher | None, Networks]:
    """Steps 1 and 2. Raises :class:`SetupError` naming the step.

    ``native``: the compiled PID 1 and its library; then there is a launcher for it.
    """
    launchers: list[Launcher] = []
    networks: list[Networks] = []

    def load_native() -> None:
        if prepare.native:
            program, library, fork = native
            launchers.append(Launcher(library, _read(f"/proc/self/fd/{program}"), _NEW_ROOT))
            _write(f"{_NEW_ROOT}{mounts.FORK_LIBRARY}", _read(f"/proc/self/fd/{fork}"), 0o755)

    for name, step in (
        ("private_namespaces", private_namespaces),
        ("build_root", lambda: build_root(_plan(prepare))),
        ("compile_runtime", lambda: _compile_runtime(prepare)),
        ("load_native", load_native),
        ("move_in", move_in),
        ("user_namespace", lambda: _enter_user_namespace(prepare.uid_base)),
        ("network", lambda: networks.append(Networks())),
    ):
        try:
            step()
        except OSError as error:
            raise SetupError(name, error.errno or 0, str(error)) from error
    return launchers[0] if launchers else None, networks[0]


def main() -> None:
    """Serve one supervisor until it goes away."""
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
    libc.set_name("sandrun-spawner")
    # The kernel also counts the processes of a sandbox as those of whoever made its user
    # namespace, which is us: jobs would share what is left of our limit.
    with contextlib.suppress(OSError, ValueError):  # without CAP_SYS_RESOURCE it stays as it is
        resource.setrlimit(resource.RLIMIT_NPROC, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.setsid()  # by it the supervisor knows whom it inherits from us: manager.reap_adopted
    # A terminal's ^C and systemd's SIGTERM reach every process; only the supervisor acts.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    channel: Channel[FromSpawner, ToSpawner] = Channel(sock, ToSpawner)
    message, native = channel.receive()
    if not isinstance(message, Prepare):
        raise SystemExit("expected Prepare")
    try:
        launcher, networks = prepare_root(message, native)
    except SetupError as error:
        channel.send(BootFailed(zygote=0, step=error.step, errno=error.errno, detail=str(error)))
        raise SystemExit(1) from error
    close_all(native)
    interpreters = find_interpreters(message)
    plan = boot.make_plan(message, interpreters)
    templates = None
    if message.mode == "fork" and message.interpreter in plan.interpreters:
        templates = Templates(
            plan, message.interpreter, message.template_jobs, message.template_seconds
        )
        templates.start_and_wait()
    gc.collect()
    gc.freeze()  # zygotes share these pages: keep the collector from touching them
    gc.disable()  # nor is there much to collect in a process that serves one job
    assistant = -1
    if launcher:
        launcher.set_plan(plan)
        assistant = launcher.start_assistant(plan)
    channel.send(SpawnerReady(interpreters=interpreters))
    serve(channel, plan, networks, templates, launcher, assistant)


def serve(
    channel: Channel[FromSpawner, ToSpawner],
    plan: boot.Plan,
    networks: Networks,
    templates: Templates | None,
    launcher: Launcher | None,
    assistant: int,
) -> None:
    """Spawn on order until the supervisor goes away.

    ``assistant``: pidfd of what serves compiled PID 1s, or -1. Without it they could
    not end their jobs: another one follows it. If that keeps dying we end as well, and
    both are started anew.
    """
    lives = ASSISTANTS_MAX
    while True:
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        for fd in templates.fds() if templates else ():
            poll.register(fd, select.POLLIN)
        if assistant >= 0:
            poll.register(assistant, select.POLLIN)
        for fd, _ in poll.poll():
            if fd == assistant:
                assert launcher is not None
                lives -= 1
                if not lives:
                    raise SystemExit("the assistant of the sandboxes keeps ending")
                os.waitid(os.P_PIDFD, assistant, os.WEXITED)
                os.close(assistant)
                assistant = launcher.start_assistant(plan)
                continue
            if fd != channel.fileno():
                assert templates is not None
                templates.on_readable(fd)
                templates.reap()
                continue
            try:
                order, fds = channel.receive()
            except Closed:
                return
            try:
                if isinstance(order, Spawn):
                    _spawn_warm(channel, plan, order, fds, networks, templates, launcher)
            finally:
                close_all(fds)


def _spawn_warm(
    channel: Channel[FromSpawner, ToSpawner],
    plan: boot.Plan,
    order: Spawn,
    fds: list[int],
    networks: Networks,
    templates: Templates | None,
    launcher: Launcher | None,
) -> None:
    if order.mode != "fork" or templates is None:
        spawn(channel, plan, order, fds, networks, launcher=launcher)
        return
    template = templates.take(time.monotonic())
    if template is None:
        fault = templates.fault or "it is still starting"
        channel.send(BootFailed(zygote=order.zygote, step="template", detail=f"template: {fault}"))
        return
    spawn(channel, plan, order, fds, networks, template.socket, launcher)


if __name__ == "__main__":
    main()
