"""A real server in which one step of a sandbox's set-up fails, or is silently left out.

The product has no switch for this: nothing that a client, an operator or the
environment says can reach it. This script starts the ordinary server on a host of its own
(:class:`FaultySupplies`, which executes this script in place of
``sandrun.pool.spawner``), and as a spawner it wraps the ordinary steps before it runs
the ordinary ``main``.

Which step and how is read, at each step, from a file that all these processes
have mapped: ``kind place step``, for example ``fail boot proc``. Kinds: ``fail``
(the step raises EPERM and does nothing), ``skip`` (it does nothing and says that
all is well), ``die`` (its process ends there). Several are joined by
semicolons. The Python of an interpreter that forks for us (``template``) has no such
mapping; its source is changed when the spawner prepares. The compiled PID 1 (``native``)
and the library by which a template forks (``fork``; one fault at a time) are compiled with
SANDRUN_FAULTS for this and get the mapping's descriptor.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import sys
import tempfile
from pathlib import Path

from sandrun.pool.supplies import Supplies

SIZE = 4096


class Control:
    """The mapped file."""

    def __init__(self, path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.memory = mmap.mmap(fd, SIZE)
        os.close(fd)

    @property
    def faults(self):
        """(kind, place, step) of each."""
        text = self.memory[:SIZE].split(b"\0")[0].decode()
        return [tuple(part.split()) for part in text.split(";") if part]

    @faults.setter
    def faults(self, faults):
        text = ";".join(" ".join(fault) for fault in faults).encode()
        self.memory[:SIZE] = text.ljust(SIZE, b"\0")

    def meet(self, place, step):
        """What is to happen at this step: nothing, or "skip"; the rest happens here."""
        for kind, where, name in self.faults:
            if (where, name) == (place, step):
                if kind == "fail":
                    raise OSError(errno.EPERM, "a fault was injected")
                if kind == "die":
                    os._exit(7)  # SIGKILL does not reach a PID 1 from its own namespace
                return kind
        return ""

    def wrap(self, place, step, name=""):
        """The step, with its possible fault before it."""
        name = name or step.__name__.strip("_")

        def wrapped(*args, **named):
            return None if self.meet(place, name) == "skip" else step(*args, **named)

        wrapped.__name__ = name
        return wrapped

    def wrap_all(self, place, steps):
        return tuple(self.wrap(place, step) for step in steps)


class FaultySupplies(Supplies):
    """The host, with our spawners, that fails where it is told to."""

    def __init__(self, path):
        self.path = path
        self.control = Control(path)

    def start(self, argv, fds):
        if argv[-2] == "sandrun.pool.spawner":
            argv = [sys.executable, "-I", __file__, "spawner", self.path, argv[-1]]
        return super().start(argv, fds)

    def memory_file(self, name, size):
        self.control.meet("supplies", "memory_file")
        return super().memory_file(name, size)

    def tmpfs(self, options):
        self.control.meet("supplies", "tmpfs")
        return super().tmpfs(options)


def serve(path, init, argv):
    """The ordinary server, on a host like that. ``init``: native or python."""
    import sandrun.__main__
    from sandrun import supervisor
    from sandrun.pool.native import build

    defines = ("SANDRUN_FAULTS",)
    supervisor.load_native = lambda _: build.load(defines) if init == "native" else None
    sys.exit(sandrun.__main__.serve(argv, FaultySupplies(path)))


def spawner(path, fd):
    """The ordinary spawner, with steps that may fail."""
    from sandrun.pool import mounts, networks
    from sandrun.pool import spawner as real
    from sandrun.pool.linux import libc
    from sandrun.pool.zygote import boot, child

    control = Control(path)
    numbers = itertools.count()
    boot.BOOT_STEPS = control.wrap_all("boot", boot.BOOT_STEPS)
    child.PARKED_STEPS = control.wrap_all("parked", child.PARKED_STEPS)
    child.LATE_STEPS = control.wrap_all("late", child.LATE_STEPS)
    for name in ("private_namespaces", "build_root", "move_in", "_enter_user_namespace"):
        setattr(real, name, control.wrap("prepare", getattr(real, name)))
    real.write_id_maps = once_prepared(control, real.write_id_maps)
    libc.clone = control.wrap("spawn", libc.clone, "clone")
    networks.raise_loopback = control.wrap("spawn", networks.raise_loopback, "network")
    networks._shown = lambda: b"%d" % next(numbers)  # none is used again: each is raised
    give_seam(control, path)
    give_templates_seam(path)
    template_fault = [name for _, place, name in control.faults if place == "template"]
    if template_fault:
        real._RUNTIME_FILES = (
            ("python/sitecustomize.py", broken_template(template_fault[0], os.path.dirname(path))),
            *real._RUNTIME_FILES[1:],
        )
    if ("open", "mounts", "root") in control.faults:
        # The first wall on the file system is left out: a tree of the root that anybody
        # may write, on mounts that are not read-only, and nobody who looks.
        plan = real._plan

        def with_an_open_directory(prepare):
            return (*plan(prepare), mounts.Directory("/etc/open"))

        def build_and_open(entries):
            build(entries)
            os.chmod(real._NEW_ROOT + "/etc/open", 0o777)

        build = real.build_root
        real._plan = with_an_open_directory
        real.build_root = build_and_open
        mount = libc.mount

        def mount_writable(source, target, fstype, flags, data=""):
            mount(source, target, fstype, flags & ~real.MS.RDONLY, data)

        libc.mount = mount_writable
        boot.attest._mounts = lambda _: None
    sys.argv = [sys.argv[0], fd]
    sys.exit(real.main())


def give_seam(control, path):
    """The compiled PID 1 finds the mapping behind its control files; see main.c."""
    from sandrun.pool import assist
    from sandrun.pool.native.launcher import Launcher

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    start = Launcher.start

    def start_with_seam(self, channel, gate, order_fds, template, network):
        control.meet("spawn", "clone")
        return start(self, channel, gate, [*order_fds, fd], template, network)

    Launcher.start = start_with_seam
    # Those of its children that are Python's have one step of another name.
    names = [step.__name__.strip("_").replace("dumpable", "die_with_parent") for step in assist.STEPS]
    assist.STEPS = tuple(map(control.wrap, ["late"] * len(names), assist.STEPS, names))


def give_templates_seam(path):
    """A template's library finds the mapping behind the last descriptor; see fork.c."""
    from sandrun.pool import templates
    from sandrun.pool.zygote import child

    fd = child.above(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    class KeepOne:
        def __getattr__(self, name):
            return getattr(os, name)

        def closerange(self, first, behind):
            os.dup2(fd, first)
            os.closerange(first + 1, behind)

    templates.os = KeepOne()


def once_prepared(control, write_id_maps):
    """The spawner's own map is written by the same function, before there is a zygote."""

    def wrapped(pid, inside, outside, count):
        if inside:
            control.meet("spawn", "id_maps")
        write_id_maps(pid, inside, outside, count)

    return wrapped


def broken_template(step, directory):
    """A copy of the warm interpreter's source in which ``step`` raises."""
    from sandrun.pool.zygote import boot

    source = Path(boot.__file__).with_name("warm_python.py").read_text()
    mark = "\nGO_FD = 3\n"
    assert source.count(mark) == 1
    change = f"""
def _broken(step):
    def run(_):
        raise OSError(1, "a fault was injected")
    run.__name__ = step.__name__
    return run if step.__name__ == "_{step}" else step


TEMPLATE_STEPS = tuple(map(_broken, TEMPLATE_STEPS))
MIDDLE_STEPS = tuple(map(_broken, MIDDLE_STEPS))
CHILD_STEPS = tuple(map(_broken, CHILD_STEPS))
"""
    with tempfile.NamedTemporaryFile("w", suffix=".py", dir=directory, delete=False) as file:
        file.write(source.replace(mark, change + mark))
    return os.path.relpath(file.name, Path(boot.__file__).parent)


if __name__ == "__main__":
    role, path, *rest = sys.argv[1:]
    if role == "serve":
        serve(path, rest[0], rest[1:])
    spawner(path, *rest)
