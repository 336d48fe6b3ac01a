"""The battery: what aiotasks promises, held under every fault that it is meant to survive.

``python -m tests.faults.battery [--quick] [--seed N] [--only NAME,…]``, or ``nox -s faults``.

Each run puts real worker processes under load, does something to them, to their database or to the line
between, at moments that the seed chooses, waits until all is over, and judges by two things alone: the
table of tasks, and a ledger that each task writes over a connection of its own, to another server, at its
start and its end, with its claim. What logs say is shown where it says more, and judged only where the log
itself is what was promised.

- ``arena.py``: the servers, the workers, the verdict of ledger and table.
- ``report.py``: figures, what was expected of them, and the table at the end.
- ``processes.py``, ``database.py``, ``network.py``, ``inside.py``, ``retries.py``, ``timeouts.py``,
  ``expiry.py``, ``unique.py``, ``bulk.py``, ``pausing.py``,
  ``limited.py``: the runs.
- ``runs.py``: all of them by name, with their sizes.
"""
