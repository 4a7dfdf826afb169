"""How fast sandrun is, as ratios to what the same machine does bare in the same run.

::

    python -m bench [--quick] [--only NAME,...]     all of issue 3's figures, as root
    python -m bench --readme [FILE]                 the newest results as Markdown
    python -m bench.load URL --jobs N --clients C   a load generator for any server
    python -m bench.soak [--minutes N]              a mixed load that must leave nothing
    python -m bench.page [--samples N]              the page in real Chromium, click to result

How to read the figures. Absolute times drift by tens of per cent from run to run on
a virtual machine, ratios do not: so every latency sample of ours stands between
samples of the bare process (A B A B), and every throughput between two bare ones.
CPU per job is what our control groups used, refill and tear-down included, plus what
kernel threads used meanwhile (they take namespaces apart). A machine that others use
shows in ``others``: their share of the processors during the run.

Who does what: ``measure`` (clock, CPU, memory, machine), ``jobs`` (the three
programs), ``bare`` (the baseline), ``zygotes`` (the pool driven without http),
``node`` (a server in a process of its own), ``client`` (keep-alive HTTP), ``peers``
(other sandboxes on PATH), ``suites`` (the figures), ``report`` (table and chart).
"""
