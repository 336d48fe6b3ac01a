"""``python -m aiotasks.worker``."""

import sys

from .process.cli import main

__all__: list[str] = []

sys.exit(main())
