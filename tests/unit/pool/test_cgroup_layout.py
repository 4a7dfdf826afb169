"""Finding control groups from the texts of /proc, on every kind of host."""

from __future__ import annotations

import pytest

from sandrun.errors import HostError
from sandrun.pool.cgroup.layout import find, parse_mounts

V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
SEPARATE = "".join(
    f"{40 + i} 31 0:{40 + i} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
    for i, name in enumerate(("cpu", "cpuacct", "memory", "pids"))
)
TOGETHER = (
    "40 31 0:40 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "41 31 0:41 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "42 31 0:42 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
)
UNIFIED = "50 31 0:50 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


def test_v2() -> None:
    layout = find(V2, "0::/system.slice/sandrun.service\n")
    assert layout.version == 2
    assert layout.directories == {"unified": "/sys/fs/cgroup/system.slice/sandrun.service"}
    assert layout.ceilings == {"unified": "/sys/fs/cgroup"}
    assert layout.companion is None


def test_v2_at_the_root() -> None:
    assert find(V2, "0::/\n").directories == {"unified": "/sys/fs/cgroup"}


def test_v1_with_a_hierarchy_each() -> None:
    layout = find(SEPARATE, "4:memory:/a/b\n3:pids:/\n2:cpuacct:/\n1:cpu:/c\n")
    assert layout.version == 1
    assert layout.directories == {
        "cpu": "/sys/fs/cgroup/cpu/c",
        "cpuacct": "/sys/fs/cgroup/cpuacct",
        "memory": "/sys/fs/cgroup/memory/a/b",
        "pids": "/sys/fs/cgroup/pids",
    }
    assert layout.companion is None


@pytest.mark.parametrize(
    ("options", "found"), [("rw,blkio", True), ("rw,blkio,memory", False), ("ro,blkio", False)]
)
def test_v1_disks_are_limited_in_a_hierarchy_of_their_own(options: str, found: bool) -> None:
    mount = f"60 31 0:60 / /sys/fs/cgroup/blkio rw - cgroup cgroup {options}\n"
    directories = find(SEPARATE + mount, "5:blkio:/\n4:memory:/\n3:pids:/\n1:cpu:/\n").directories
    assert ("blkio" in directories) is found


def test_v1_with_cpu_and_cpuacct_in_one_hierarchy() -> None:
    directories = find(TOGETHER, "3:cpu,cpuacct:/x\n2:memory:/\n1:pids:/\n").directories
    assert directories["cpu"] == directories["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct/x"


def test_hybrid_has_a_companion() -> None:
    groups = "3:cpu,cpuacct:/\n2:memory:/\n1:pids:/\n0::/user.slice\n"
    layout = find(TOGETHER + UNIFIED, groups)
    assert layout.version == 1
    assert layout.companion == "/sys/fs/cgroup/unified/user.slice"


def test_a_container_without_a_cgroup_namespace_sees_the_host_s_path() -> None:
    mount = "35 24 0:30 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    assert find(mount, "0::/docker/abc\n").directories["unified"] == "/sys/fs/cgroup"
    assert find(mount, "0::/docker/abc/x\n").directories["unified"] == "/sys/fs/cgroup/x"
    assert find(mount, "0::/docker/abcd\n").directories["unified"] == "/sys/fs/cgroup/docker/abcd"


def test_a_mount_point_with_a_space_is_unescaped() -> None:
    line = "35 24 0:30 / /sys/fs/c\\040group ro - cgroup2 cgroup2 rw\n"
    (mount,) = parse_mounts(line)
    assert mount.point == "/sys/fs/c group"
    assert not mount.writable


def test_other_mounts_and_broken_lines_are_passed_over() -> None:
    assert parse_mounts("24 1 0:5 / /proc rw - proc proc rw\nnonsense\n\n") == []


@pytest.mark.parametrize(
    ("mountinfo", "groups", "named"),
    [
        ("", "0::/\n", "no cgroup file system"),
        (
            TOGETHER.replace("rw,memory", "rw,blkio"),
            "3:cpu,cpuacct:/\n1:pids:/\n",
            "memory",
        ),
        (
            SEPARATE.replace("rw,pids", "rw,net_cls"),
            "4:memory:/\n2:cpuacct:/\n1:cpu:/\n",
            "pids",
        ),
    ],
)
def test_what_is_missing_is_named_with_a_cure(mountinfo: str, groups: str, named: str) -> None:
    with pytest.raises(HostError, match=named) as caught:
        find(mountinfo, groups)
    assert caught.value.cure
