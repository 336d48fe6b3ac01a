"""How many file descriptors this process may still open."""

import errno
import os
import resource
import sys

__all__ = ["CONNECTION_DESCRIPTORS", "SPARE_DESCRIPTORS", "count_free_descriptors"]

# The descriptors that must be free for another thread with a connection: two that libpq and its wait open,
# and some for the worker's own connections, files and sockets.
CONNECTION_DESCRIPTORS = 2
SPARE_DESCRIPTORS = 8


def count_free_descriptors() -> int:
    """Return how many are free. It opens at most one itself: other threads may need the last ones."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        used = len(os.listdir("/dev/fd")) - 1  # that of the listing itself
    except OSError as error:
        return 0 if error.errno in (errno.EMFILE, errno.ENFILE) else allowed  # where there is no /dev/fd
    return max(0, allowed - used)
