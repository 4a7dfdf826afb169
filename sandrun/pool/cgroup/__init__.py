"""Control groups, v1 and v2, behind one interface. Runs as: root (supervisor).

::

    <the group we were started in>
    └── sandrun-<pid>-<start time>     all of ours; swap is off from here on down
        ├── service                    supervisor, http, spawners, every PID 1
        └── jobs                       caps of all jobs together, of disk reads too
            ├── 0                      one job's processes, its tmpfs pages, its limits
            └── 1 …

Why two leaves: PID 1 of a sandbox must live to tell that its job ran out of
memory, so the limits bite beside it. Why the name: a supervisor that was killed
leaves its groups behind; the next start takes those whose process is gone and
nothing else. Why a top group: v2 lets only groups without processes hand
controllers on, so we move ourselves into a leaf first.

If the group we were started in has other processes (an ordinary shell does), v2
refuses to hand on controllers there. We then nest under the nearest group above
that hands them on already; we never change a setting of a group that others use.

Files are opened once for each job group and kept: a write through a kept
descriptor is 1 µs and the kernel's work, through open and close 6, through
cgroupspy's attributes 16 (read: 25). So cgroupspy's ``Node`` and ``Controller``
are the object model and serve all that is done once, and PID 1 gets descriptors
(:mod:`sandrun.pool.zygote.group`). Its ``Tree`` walks other tenants' groups and
its ``create_cgroup`` gets slower with every sibling: neither is used.

==================  ==============================================================
``hierarchy.py``    all of ours: made, and taken away whole
``job_group.py``    one slot's group: its limits, used again or removed
``layout.py``       where this process's groups are, on v1, v2 and hybrid hosts
``caps.py``         what all jobs together may have of this host
``tree.py``         groups and all below them: who is in, kill, remove
``instances.py``    names of supervisors' groups; what dead ones left is swept
``nodes.py``        cgroupspy's objects, extended
``kernfs.py``       reading and writing one file
==================  ==============================================================

man: cgroups(7); Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst
"""
