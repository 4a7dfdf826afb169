"""sandrun runs other people's code, anonymously and safely, at function-call speed.

Theory of operation
===================

A **supervisor** (root) starts one **http** process (no privileges, its own system
call filter; a second one stands by) and, for each environment, one **spawner** (root only inside a user
namespace of its own). Spawners clone **zygotes**: sandboxes that are complete
before anybody asks for one. A zygote is PID 1 of its own pid, mount, net, ipc,
uts and user namespaces, with a tmpfs and a control group; in it waits one parked
process, already under the job's uid, without capabilities, under its filter, in
its group, blocked on one read.

::

    client ─▶ http ─▶ queue ─▶ lease ═Dispatch═▶ PID 1 ─go─▶ parked process = the job
    client ◀─ http ◀─ log and outputs (shared memory) ◀═Result═ PID 1

Zygotes are leased to http ahead of time, so a job costs one datagram to PID 1 and
one to the parked process. The supervisor hears of it afterwards and refills. A
zygote serves one job and is gone; nothing that one job left can meet the next.

Who may parse what
------------------

=============  ===========================  =====================================
process        runs as                      parses
=============  ===========================  =====================================
supervisor     root                         messages of http, each field bounded
spawner        root of a user namespace     nothing that a client or job wrote
assistant      root of a user namespace     three bytes of PID 1 (if that is compiled)
http           a uid of its own, confined   HTTP, multipart, JSON
PID 1          uid P, confined              messages of http; its child's report
unpack child   uid J, confined as the job   archives and the job.json in them
job            uid J, confined              whatever it likes
=============  ===========================  =====================================

What http could do if it were taken over: run jobs, read the jobs it holds, lie to
their owners. It cannot open a file, start a program, reach the network or exceed
the limits that PID 1 and the supervisor know from the configuration; its system
call filter and its Landlock domain each say so without the other.

What a job could do if it broke PID 1: kill itself, lie about itself, fill its own
log and outputs. PID 1 has no capability, no other uid's processes and no
descriptor but this sandbox's, and it may ask the assistant for each kind of child
once.

What is left of a deleted job: nothing that a process holds. Its files, log and
outputs are memory that was only ever reachable by descriptors; the last of them is
closed, and the kernel zeroes a page before anybody sees it again. We overwrite
nothing ourselves: the larger part, the job's own memory, is out of our reach, so it
would promise what only ``init_on_free=1`` keeps (the doctor and ``/privacy`` tell).

What a job can take from the host: processor time, memory and disk reads up to limits that
hold for all jobs together (``pool/cgroup/``). Reads from what is no disk of the host's, a
network file system say, have none, and where the host has no control group for disks the
doctor says so. What the kernel keeps for everybody and charges to no group is bounded by
other means: timers and queued signals by a limit of each process's user; connections over
loopback that nobody accepted by PID 1, which looks four times a second, so for that long a
job may hold more; open files, network buffers and lines of the host's log only where the
host's own settings leave room for all jobs, which the doctor compares.

What jobs that want to can still tell each other, or notice of the host: load and free
memory by sysinfo(2) and by timing; which shared files were read lately, by timing; how
full the file system of ``/usr`` is; how many TCP connections there are and what their
buffers hold, and how many packets the host's processors have taken in
(``/proc/self/net/sockstat`` and ``softnet_stat``, of which no namespace has its own); the
audit id of whoever started the server by hand (``/proc/self/loginuid``); and locks by
flock(2) or fcntl(2) on files below ``/usr``, which are the host's own files: a job can hold
such a lock for as long as it runs. A host whose programs lock files that live below
``/usr`` should know that.

Where to read on
----------------

``job.py`` (the nouns), ``messages.py`` (what they tell each other),
``pool/lifecycle.py`` (a zygote's life), ``pool/zygote/boot.py`` (how a sandbox is
made), ``pool/zygote/serve.py`` (how a job runs in it), ``http/app.py``.

Three folders, three privileges: ``http/`` runs as nobody, ``pool/`` as root,
``pool/zygote/`` inside the sandbox. Modules directly in ``sandrun/`` are the shared
vocabulary and the supervisor.
"""

__version__ = "0.1.0"
