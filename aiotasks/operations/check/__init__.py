"""``manage.py aiotasks check``: what may be wrong with a backend's set-up, one module a check."""

from .diagnose import CHECKS, diagnose
from .settings import check_settings
from .text import finding_parts

__all__ = ["CHECKS", "check_settings", "diagnose", "finding_parts"]
