"""``python -m benchmarks.timed_worker FILE``: a worker that writes how long its claims took, when it stops.

The file is a JSON list of [seconds since the epoch, seconds from a claim's call to its jobs].
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from aiotasks.store.store import Store
from aiotasks.worker.process import cli

__all__: list[str] = []

_claims: list[tuple[float, float]] = []
_claim_jobs = Store.claim_jobs


async def _timed(self: Store, *args: Any, **kwargs: Any) -> Any:
    started = time.perf_counter()
    try:
        return await _claim_jobs(self, *args, **kwargs)
    finally:
        _claims.append((time.time(), time.perf_counter() - started))


if __name__ == "__main__":
    Store.claim_jobs = _timed
    code = cli.main([])
    Path(sys.argv[1]).write_text(json.dumps(_claims))
    sys.exit(code)
