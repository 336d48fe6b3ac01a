"""``manage.py aiotasks check``: what may be wrong with a backend's set-up, one module a check."""

from .diagnose import CHECKS, diagnose
from .settings import check_settings
from .text import findings_as_text

__all__ = ["CHECKS", "check_settings", "diagnose", "findings_as_text"]
