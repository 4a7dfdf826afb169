"""cgroupspy, extended: pids, v2, and groups that are told their controller. Runs as: root. I/O."""

from __future__ import annotations

from cgroupspy.controllers import Controller  # type: ignore[import-untyped]
from cgroupspy.interfaces import (  # type: ignore[import-untyped]
    BaseFileInterface,
    DictFile,
    IntegerFile,
)
from cgroupspy.nodes import Node  # type: ignore[import-untyped]


class MaxFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy has no types
    """A number or "max", which reads as None."""

    def sanitize_get(self, value: str) -> int | None:
        """Text → number."""
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        """Number → text."""
        return "max" if value is None else str(value)


class PidsController(Controller):  # type: ignore[misc]
    """The pids controller; the same files on v1 and v2."""

    pids_max = MaxFile("pids.max")
    pids_current = IntegerFile("pids.current", readonly=True)
    pids_events = DictFile("pids.events", readonly=True)


class UnifiedController(PidsController):
    """The files of a v2 group, whichever controllers it has."""

    controllers = BaseFileInterface("cgroup.controllers", readonly=True)
    subtree_control = BaseFileInterface("cgroup.subtree_control")
    events = DictFile("cgroup.events", readonly=True)
    kill = IntegerFile("cgroup.kill", writeonly=True)
    cpu_max = BaseFileInterface("cpu.max")
    cpu_weight = IntegerFile("cpu.weight")
    memory_max = MaxFile("memory.max")
    memory_low = MaxFile("memory.low")
    memory_current = IntegerFile("memory.current", readonly=True)
    swap_max = MaxFile("memory.swap.max")


Node.CONTROLLERS[b"pids"] = PidsController
Node.CONTROLLERS[b"unified"] = UnifiedController


class GroupNode(Node):  # type: ignore[misc]
    """A group whose controller is told, not guessed from a mount's name.

    cgroupspy knows a controller by the name of its mount point, which is
    "cpu,cpuacct" on many hosts and anything in a container.
    """

    def __init__(self, name: str, controller: str, parent: GroupNode | None = None) -> None:
        self._told = controller.encode()
        super().__init__(name, parent)
        # cgroupspy joins the whole path at every access, which is 10 µs.
        self.directory: str = f"{parent.directory}/{name}" if parent else name

    def _get_controller_type(self) -> bytes:
        return self._told

    def child(self, name: str) -> GroupNode:
        """The node below, which need not exist yet."""
        return GroupNode(name, self._told.decode(), self)
