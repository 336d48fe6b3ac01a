from django.db import migrations, models
from django.db.models.functions import Length
from django.db.models.lookups import LessThanOrEqual

from ._online import AddConstraint


class Migration(migrations.Migration):
    """Refuse rows that no index of READY ones could hold: one of them would keep its whole backend from
    being promoted or rescued. Rows that are there already aren't looked at; code of ours writes none.
    """

    atomic = False

    dependencies = [("aiotasks", "0004_suspects")]

    operations = [
        AddConstraint(
            "task",
            models.CheckConstraint(
                condition=models.Q(
                    LessThanOrEqual(Length("backend") + Length("queue_name") + Length("lane"), 640)
                ),
                name="aiotasks_task_names_fit",
            ),
        ),
    ]
