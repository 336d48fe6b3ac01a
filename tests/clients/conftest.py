"""The processes of the workers' tests."""

from tests.worker.harness import ledger, start

__all__ = ["ledger", "start"]
