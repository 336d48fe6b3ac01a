"""The memory of this process."""

import os
import resource
import sys
from contextlib import suppress

__all__ = ["resident_bytes"]

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return how many bytes of memory the process has now; where there is no /proc, the most it has had."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * PAGE
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # getrusage(2): bytes there, KiB elsewhere
