from tests.worker.harness import configure, ledger, start, start_worker

__all__ = ["configure", "ledger", "start", "start_worker"]
