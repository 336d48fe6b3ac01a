"""Many workers on one database: what a task costs the fleet, and how long it waits.

``python -m benchmarks.fleet`` runs on a PostgreSQL of its own and prints one table for each part. ``python -m
benchmarks`` compares queues; this compares versions of aiotasks: run it with PYTHONPATH set to one tree, then
to the other, by turns.
"""
