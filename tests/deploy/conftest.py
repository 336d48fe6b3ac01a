from ..worker.harness import ledger, start

__all__ = ["ledger", "start"]
