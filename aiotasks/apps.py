"""The Django app: models, migrations, checks and the management command."""

from django.apps import AppConfig

__all__ = ["AiotasksConfig"]


class AiotasksConfig(AppConfig):
    name = "aiotasks"
    verbose_name = "Tasks"

    def ready(self) -> None:
        # Both register checks: Django's asks the backends, once something has imported it.
        import django.tasks  # noqa: F401

        from . import checks  # noqa: F401
        from .schedules import checks as schedules_checks  # noqa: F401
