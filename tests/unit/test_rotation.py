"""QueueRotation: from which time on the next claim looks."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.worker.claiming.rotation import WATERMARK_MARGIN, QueueRotation

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)


@pytest.mark.parametrize("during_a_claim", [False, True])
@pytest.mark.parametrize("how", ["look_back", "forget"])
def test_what_was_promoted_during_a_claim_is_looked_for(how: str, during_a_claim: bool) -> None:
    """The claim may have been sent before the promotion was committed, so it leaves no watermark."""
    sources = QueueRotation(None, backend="default", queues=["q"])  # type: ignore[arg-type]
    jobs: Any = [SimpleNamespace(ready_at=NOW, queue_name="q")]

    def since() -> datetime:
        return sources.of("loop", ["q"], 10, robust_only=False).since[0]

    def look_back() -> None:
        sources.look_back(LONG_AGO) if how == "look_back" else sources.forget()

    sources.learn("loop", sources.of("loop", ["q"], 10, robust_only=False), jobs)
    assert since() == NOW - WATERMARK_MARGIN
    claim = sources.of("loop", ["q"], 10, robust_only=False)
    if during_a_claim:
        look_back()
    sources.learn("loop", claim, jobs)
    if not during_a_claim:
        look_back()
    assert since() <= LONG_AGO
    sources.learn("loop", claim, jobs)
    assert since() == NOW - WATERMARK_MARGIN
