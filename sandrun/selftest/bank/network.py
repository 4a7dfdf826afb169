"""G: the network that is not there."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import python
from sandrun.selftest.case import Call, Case, expect
from sandrun.selftest.target import Target


def _own_loopback(target: Target) -> None:
    code = (
        "import socket, sys\n"
        f"for host, port in (('127.0.0.1', {target.port}), ('localhost', {target.port}), ('0.0.0.0', {target.port}), ('::1', {target.port})):\n"
        "    try:\n        socket.create_connection((host, port), 3)\n        print('connected', host)\n"
        "    except OSError as error:\n        pass\n"
        "print('held')\n"
    )
    found = target.run({"main.py": code})["stdout"]
    expect(found == "held\n", f"a job reaches the server's own port: {found!r}")


def _two_same_ports(target: Target) -> None:
    code = (
        "import socket, threading, time\n"
        "s = socket.create_server(('127.0.0.1', 8080))\n"
        "threading.Thread(target=lambda: s.accept()[0].sendall(b'mine'), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(socket.create_connection(('127.0.0.1', 8080)).recv(9))\n"
    )
    first = target.submit({"main.py": code})
    second = target.run({"main.py": code})
    expect(second["stdout"] == "b'mine'\n", f"second: {second['stderr'][-300:]!r}")
    target.wait(first["job_id"])
    text = target.get(f"/logs/{first['job_id']}").json()["stdout"]
    expect(text == "b'mine'\n", f"first: {text!r}")


CASES: Final[tuple[Case, ...]] = (
    python(
        "G1.interfaces",
        "loopback is the only interface",
        """
        import socket
        expect("interfaces", [name for _, name in socket.if_nameindex()] if outcome(socket.if_nameindex) == "ok" else ["lo"], ["lo"])
        """,
    ),
    python(
        "G2",
        "protocols beside TCP and UDP are refused",
        """
        import socket
        for family in (2, 10):
            for kind, protocol in ((1, 262), (1, 132), (5, 132), (2, 136), (2, 1), (2, 58), (3, 1), (3, 6), (3, 255), (1, 33), (6, 33), (2, 115)):
                refused("%d %d %d" % (family, kind, protocol), socket.socket, family, kind, protocol, by=("EAFNOSUPPORT", "EPROTONOSUPPORT", "EPERM", "ESOCKTNOSUPPORT"))
        """,
    ),
    python(
        "G3",
        "no address outside answers, and none is waited for",
        """
        import socket, time
        start = time.monotonic()
        for host in ("1.1.1.1", "8.8.8.8", "169.254.169.254", "10.0.0.1", "172.17.0.1", "192.168.0.1", "100.100.100.200", "224.0.0.1", "255.255.255.255"):
            for port in (53, 80):
                refused("tcp " + host, socket.create_connection, (host, port), 2, by=("ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "EACCES"))
                def send():
                    with socket.socket(2, 2) as s:
                        s.sendto(b"x", (host, port))
                refused("udp " + host, send, by=("ENETUNREACH", "EHOSTUNREACH", "EACCES", "EPERM"))
        for host in ("2606:4700:4700::1111", "fe80::1%lo", "fd00:ec2::254", "ff02::1"):
            def reach():
                with socket.socket(10, 1) as s:
                    s.settimeout(2); s.connect((host.split("%")[0], 80, 0, 1))
            refused(host, reach, by=("ENETUNREACH", "EADDRNOTAVAIL", "EHOSTUNREACH", "ECONNREFUSED", "EACCES", "EAFNOSUPPORT", "EINVAL"))
        expect("quick", time.monotonic() - start < 8, True)
        """,
    ),
    Call(id="G4", title="a job does not reach the server's own port", run=_own_loopback),
    python(
        "G5",
        "names are not resolved, and that is said at once",
        """
        import socket, time
        start = time.monotonic()
        for name in ("example.org", "metadata.google.internal", "host.docker.internal"):
            try:
                note(socket.getaddrinfo(name, 80))
            except socket.gaierror:
                pass
        expect("quick", time.monotonic() - start < 3, True)
        expect("resolv.conf", open("/etc/resolv.conf").read(), "")
        """,
    ),
    python(
        "G7",
        "no socket of the host's services is in sight",
        """
        import socket, stat
        for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket", "/run/systemd/notify", "/run/systemd/private",
                     "/run/containerd/containerd.sock", "/run/user", "/tmp/.X11-unix", "/run/sandrun.sock", "/dev/log", "/run/nscd/socket"):
            expect(path, os.path.exists(path), False)
        for base in ("/run", "/tmp", "/dev", "/var", "/opt", "/home"):
            for root, names, files in os.walk(base):
                for name in files:
                    mode = os.lstat(os.path.join(root, name)).st_mode
                    if stat.S_ISSOCK(mode):
                        note("socket " + os.path.join(root, name))
        """,
    ),
    python(
        "G7.abstract",
        "abstract sockets of others cannot be reached",
        """
        import socket
        for name in ("", "/tmp/.X11-unix/X0", "/org/freedesktop/systemd1/notify", "dbus", "/containerd-shim/x", "sandrun"):
            def reach():
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect("\\0" + name)
            refused(repr(name), reach, by=("ECONNREFUSED", "EPERM", "EINVAL"))
        """,
    ),
    python(
        "G8",
        "netlink in every protocol is refused",
        """
        import socket
        for protocol in range(0, 23):
            refused("netlink %d" % protocol, socket.socket, 16, 3, protocol, by=("EAFNOSUPPORT",))
        """,
    ),
    python(
        "G9",
        "every other address family is refused, vsock above all",
        """
        import socket
        for family in range(0, 48):
            if family in (1, 2, 10):
                continue
            for kind in (1, 2, 3, 5):
                refused("family %d" % family, socket.socket, family, kind, 0, by=("EAFNOSUPPORT",))
            refused("pair %d" % family, raw, "socketpair", family, 1, 0, None, by=("EAFNOSUPPORT",))
        """,
    ),
    python(
        "G9.high",
        "high bits in the family or type do not get past the filter",
        """
        for family in (16 | 1 << 32, 40 | 1 << 32, (1 << 32) | 17):
            refused(hex(family), raw, "socket", family, 2, 0, by=("EAFNOSUPPORT",))
        for kind in (3, 3 | 0x80000, 3 | 0x800, 10):
            refused("type %#x" % kind, raw, "socket", 2, kind, 255, by=("EAFNOSUPPORT", "EPERM", "EPROTONOSUPPORT"))
        """,
    ),
    Call(id="G11", title="two jobs serve the same port, each for itself", run=_two_same_ports),
    python(
        "G12",
        "interfaces cannot be listed or changed by ioctl",
        """
        import ctypes, socket
        s = socket.socket(2, 2)
        for command in (0x8914, 0x8912, 0x8946, 0x8927, 0x8916, 0x891C, 0x890B, 0x89A0, 0x8933, 0x8970, 0x89F0):
            refused("ioctl %#x" % command, raw, "ioctl", s.fileno(), command, ctypes.create_string_buffer(b"lo" + bytes(60)), by=("ENOTTY",))
        """,
    ),
    python(
        "G14.options",
        "socket options that reach deep into the kernel are refused",
        """
        import ctypes, socket
        tcp, udp = socket.socket(2, 1), socket.socket(2, 2)
        buffer = ctypes.create_string_buffer(64)
        for sock, level, option in ((tcp, 6, 31), (tcp, 6, 19), (tcp, 6, 14), (tcp, 1, 26), (tcp, 1, 50), (tcp, 1, 36), (tcp, 1, 25), (tcp, 1, 12),
                                    (udp, 17, 103), (udp, 17, 100), (udp, 0, 35), (udp, 0, 32), (udp, 0, 19), (udp, 0, 64), (udp, 41, 64), (udp, 263, 1), (udp, 41, 54)):
            refused("%d %d" % (level, option), raw, "setsockopt", sock.fileno(), level, option, buffer, 64, by=("ENOPROTOOPT", "EPERM", "ENOTSUP"))
        """,
    ),
    python(
        "G15.bind_low",
        "binding to a privileged port of one's own loopback gains nothing",
        """
        import socket
        got = outcome(lambda: socket.create_server(("127.0.0.1", 80)))
        expect("port 80", got, "ok", "EACCES")
        refused("foreign address", lambda: socket.socket(2, 1).bind(("10.1.2.3", 8000)), by=("EADDRNOTAVAIL", "EACCES"))
        refused("transparent", lambda: socket.socket(2, 1).setsockopt(0, 19, 1), by=("ENOPROTOOPT", "EPERM"))
        """,
    ),
)
