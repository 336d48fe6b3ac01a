"""Workloads, run on aiotasks, on the bare database and on rivals, side by side: ``python -m benchmarks``."""
