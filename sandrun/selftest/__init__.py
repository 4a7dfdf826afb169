"""The bank of hostile cases, and the report card that it gives. A client; no privilege.

Whoever runs a server wants to know whether its walls hold on *his* kernel, today.
So the cases that the tests run are part of the product, as data::

    python -m sandrun selftest http://127.0.0.1:8000    a server that runs
    python -m sandrun selftest --local                  one started for the purpose

A case is one of two records (``case.py``). A :class:`~sandrun.selftest.case.Job`
is a program that a stranger might submit, with what must become of it. A
:class:`~sandrun.selftest.case.Call` is something that a stranger might do to the
server itself: requests, uploads, downloads, WebSockets. ``bank/`` has them, one
module a layer; ``attack.py`` is the small module that hostile Python programs
find beside themselves; ``run.py`` runs them, ``report.py`` writes the card, and
``host.py`` compares the machine before and after (``--local`` and the tests only:
it must see the server's own processes).

Every case ends as *held*, *broken* or *unable*, the last with its reason: a
machine without gcc cannot compile, a server with rate limits does not take two
hundred jobs from one address.
"""
