"""The database and the processes of the other tests."""

from tests.conftest import database, django_db_setup, pg, worker_env
from tests.worker.harness import ledger, start

__all__ = ["database", "django_db_setup", "ledger", "pg", "start", "worker_env"]
