"""Network namespaces are used again, and only while nothing has happened in them."""

import json
import os
import subprocess
import sys

import pytest
import servers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes are made by root")

CONFIG = f"""{servers.NO_RATE_LIMIT}
[pool]
init = "{{}}"
ready = 1
ready_max = 1
[interpreters.python3]
command = ["python3"]
extensions = [".py"]
mode = "{{}}"
ready = 1
"""
LOOK = """
import json, os, re, socket, struct
def shown(name):
    return open("/proc/self/net/" + name).read()
def look():
    used, = re.findall("used ([0-9]+)", shown("sockstat"))
    return {
        "namespace": os.readlink("/proc/self/ns/net"),
        "counters": [shown(name) for name in ("dev", "snmp", "netstat", "snmp6")],
        "sockets": [used, shown("unix").count("@"), len(shown("tcp").splitlines())],
    }
print(json.dumps(look()))
"""
NOISE = {
    "a TCP connection, which then waits": """
server = socket.create_server(("127.0.0.1", 5000))
client = socket.create_connection(("127.0.0.1", 5000))
other, _ = server.accept()
client.close(); other.close()
assert " tw 1 " in shown("sockstat")
""",
    "a TCP connection that nobody takes": """
try: socket.create_connection(("127.0.0.1", 1))
except ConnectionRefusedError: pass
""",
    "a datagram to itself": """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("127.0.0.1", 0))
s.sendto(b"x", s.getsockname())
""",
    "a datagram over IPv6": """
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("::1", 0))
s.sendto(b"x", s.getsockname())
""",
    "a datagram that has nowhere to go": """
try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))
except OSError: pass
""",
    "a socket that is on its way to itself": """
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
named = socket.socket(socket.AF_UNIX); named.bind("\\0left"); named.listen()
for fd in (a, b, named):
    a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd.fileno()))])
""",
}
NEVER_SENT = "a socket that is on its way to itself"  # nothing is left of it when it is collected


@pytest.fixture(
    scope="module",
    params=[("native", "door"), ("native", "fork"), ("python", "door")],
    ids=lambda param: "-".join(param),
)
def server(request):
    with servers.running(CONFIG.format(*request.param)) as found:
        yield found


def looks(server, more="", count=1):
    answers = [server.python(LOOK + more) for _ in range(count)]
    assert all(answer["exit_reason"] == "exited" and not answer["stderr"] for answer in answers), answers
    return [json.loads(answer["stdout"].splitlines()[-1]) for answer in answers]


def test_jobs_without_traffic_follow_each_other_in_one_namespace(server):
    found = looks(server, count=8)
    assert len({look["namespace"] for look in found}) < len(found)
    assert all(look["counters"] == found[0]["counters"] for look in found)
    assert all(look["sockets"] == found[0]["sockets"] for look in found)


@pytest.mark.parametrize("noise", NOISE)
def test_what_a_job_left_in_its_network_does_not_meet_the_next(server, noise):
    (before,) = looks(server)
    (noisy,) = looks(server, NOISE[noise] + "print(json.dumps(look()))\n")
    after = looks(server, count=6)
    assert all(look["counters"] == before["counters"] for look in after)
    assert all(look["sockets"] == before["sockets"] for look in after)
    if noise != NEVER_SENT:
        assert noisy["counters"] != before["counters"]


def test_a_sandbox_has_no_power_over_its_network(server):
    answer = server.python(
        "import fcntl, socket, struct\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for request in (0x8914, 0x8916, 0x89A0):\n"
        "    try: fcntl.ioctl(s, request, struct.pack('16sH14x', b'lo', 0)); print('done')\n"
        "    except OSError as error: print(error.errno)\n"
        "s.connect(('127.0.0.1', 9))\nprint(s.getsockname()[0])"
    )
    assert "done" not in answer["stdout"]
    assert answer["stdout"].splitlines()[-1] == "127.0.0.1"


KEEP = """
import json, os
from sandrun.pool.networks import KEPT_FROM, Networks

def kept():
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd >= KEPT_FROM]

networks, counts = Networks(), []
for slot, living in SCHEDULE:
    with networks.of(slot, living):
        pass
    counts.append(len(kept()))
print(json.dumps(counts))
"""


def counts_of(schedule):
    run = subprocess.run(
        [sys.executable, "-c", f"SCHEDULE = {schedule}\n{KEEP}"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout)


def test_as_many_are_kept_as_sandboxes_exist_and_some_more():
    """With 1,000 sandboxes ready each new one paid for a namespace of its own."""
    many = [(slot, 80) for slot in range(80)]
    counts = counts_of(many * 2 + [(0, 1)] * 10)
    assert counts[:80] == list(range(1, 81))
    assert counts[80:160] == [80] * 80, "used again"
    assert counts[160:] == [78, 76, 74, 72, 70, 68, 66, 65, 65, 65], "closed bit by bit"
