from django.db import migrations, models
from django.db.models.lookups import LessThanOrEqual

from ._online import AddConstraint


def octet_length(column: str) -> models.Func:
    return models.Func(models.F(column), function="octet_length", output_field=models.IntegerField())


class Migration(migrations.Migration):
    """Refuse rows that don't fit the READY index: a single one would make the promotions and rescues of its
    backend fail. Existing rows aren't checked, because no release writes such a row.
    """

    atomic = False

    dependencies = [("aiotasks", "0004_suspects")]

    operations = [
        AddConstraint(
            "task",
            models.CheckConstraint(
                condition=models.Q(
                    LessThanOrEqual(
                        octet_length("backend") + octet_length("queue_name") + octet_length("lane"), 2560
                    )
                ),
                name="aiotasks_task_names_fit",
            ),
        ),
    ]
