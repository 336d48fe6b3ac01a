"""What a stored error says of its attempt: which it was, when it began, how long it took, and where it ran.

The row keeps the times of its first and its last attempt only.
"""

import json
import os
import socket

from ...rows import Job, time_of

__all__ = ["noted"]


def noted(error: str, job: Job, seconds: float | None) -> str:
    """Return the JSON text of a failed attempt's error with a note of the attempt at its end.

    The keys are ``attempt`` (counted from 1), ``began`` (by the database's clock, in ISO 8601), ``seconds``
    (None: its body never began) and ``worker`` (``host:pid``). They come last because statements recognise
    some errors by the beginning of their text. aiotasks of before reads ``class`` and ``traceback`` alone.
    """
    began = time_of(job.last_attempted_at)
    note = {
        "attempt": len(job.worker_ids),
        "began": None if began is None else began.isoformat(),
        "seconds": None if seconds is None else round(seconds, 6),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
    }
    return f"{error[:-1]}, {json.dumps(note)[1:]}"
