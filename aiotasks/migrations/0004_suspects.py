from django.db import migrations, models

from ._online import AddIndex


class Migration(migrations.Migration):
    """An index of tasks that are READY after two crashes. Workers of the release before claim them with the
    rest.
    """

    atomic = False

    dependencies = [("aiotasks", "0003_keep_result")]

    operations = [
        AddIndex(
            "task",
            models.Index(
                models.F("backend"),
                models.F("lane"),
                models.OrderBy(models.F("priority"), descending=True),
                models.F("ready_at"),
                models.F("id"),
                condition=models.Q(("crashes__gte", 2), ("status", "READY")),
                name="aiotasks_task_suspects",
            ),
        ),
    ]
