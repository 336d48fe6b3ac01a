"""How long a task has waited to be claimed."""

from ..rows import Job, microseconds

__all__ = ["wait_of"]


def wait_of(job: Job) -> float | None:
    """Return the seconds from READY to the claim, by the database's clock; None if that isn't known."""
    if job.ready_at is None or job.last_attempted_at is None:
        return None
    return (microseconds(job.last_attempted_at) - microseconds(job.ready_at)) / 1_000_000
