"""A deploy in place: the files of the release that a worker runs are replaced while it runs."""

import os
import shutil
import sys
from pathlib import Path
from uuid import uuid4

from tests.conftest import ROOT
from tests.site import postgres_result

from . import tasks
from .harness import Ledger, Process, wait_until


def test_a_worker_needs_no_file_of_its_release_once_it_runs(
    ledger: Ledger, worker_env: dict[str, str], tmp_path: Path
) -> None:
    package = tmp_path / "aiotasks"
    shutil.copytree(ROOT / "aiotasks", package, ignore=shutil.ignore_patterns("__pycache__", "demo"))
    env = {
        **worker_env,
        "DJANGO_SETTINGS_MODULE": "tests.worker.settings",
        "TEST_OPTIONS": '{"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 0.2}',
        "PYTHONPATH": os.pathsep.join([os.fspath(tmp_path), os.fspath(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = f'cd "{tmp_path}" && exec "{sys.executable}" -m aiotasks.worker --grace 0'
    worker = Process(["sh", "-c", command], env, tmp_path / "worker.log")
    try:
        worker.wait_for("connections: at most")
        first = tasks.add.enqueue(1, 2)  # imports the site's module
        wait_until(lambda: ledger.task(first.id).status == "SUCCESSFUL")
        for path in [*package.rglob("*.py"), *package.rglob("*.sql")]:
            path.write_text("of another release (")
        lost = _lost_task(ledger)
        results = [tasks.add.enqueue(1, 2), tasks.add_sync.enqueue(1, 2), tasks.count_rows.enqueue()]
        bad = tasks.fail.enqueue("ValueError")
        cancelled = tasks.work.enqueue(600.0)
        wait_until(lambda: ledger.task(cancelled.id).status == "RUNNING")
        assert postgres_result(cancelled).cancel()
        ids = [lost, *(result.id for result in results)]
        wait_until(lambda: {ledger.task(id).status for id in ids} == {"SUCCESSFUL"})
        wait_until(lambda: {ledger.task(one.id).status for one in (bad, cancelled)} == {"FAILED"})
        shutil.rmtree(package)
        given_back = tasks.work.enqueue(600.0)
        wait_until(lambda: ledger.task(given_back.id).status == "RUNNING")
        assert worker.stop() == 0
        assert (ledger.task(given_back.id).status, ledger.task(given_back.id).worker_ids) == ("READY", [])
        assert ledger.workers() == 0
        assert "No such file" not in worker.log
    finally:
        worker.kill()
        print(worker.log)  # noqa: T201


def _lost_task(ledger: Ledger) -> str:
    """A task that a worker has left behind whose row has gone, for the sweep."""
    id = str(uuid4())
    ledger.connection.execute(
        """
        INSERT INTO aiotasks_task (id, backend, queue_name, task_path, lane, priority, status, args, kwargs,
            errors, worker_ids, crashes, enqueued_at, ready_at, claim_id, worker_id, last_attempted_at)
        SELECT %s, 'default', 'default', 'tests.worker.tasks.add', 'loop', 0, 'RUNNING', '[1, 2]', '{}',
            '{}', ARRAY[new.id], 0, now(), now(), new.id, new.id, now()
        FROM gen_random_uuid() AS new (id)
        """,
        [id],
    )
    return id
