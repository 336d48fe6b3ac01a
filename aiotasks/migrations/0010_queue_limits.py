from django.db import migrations, models

import aiotasks.fields

from ._online import AddColumn


class Migration(migrations.Migration):
    """A nullable column without a default: workers of the release before register without it, and ``status``
    shows no limits of theirs.
    """

    atomic = False

    dependencies = [("aiotasks", "0009_awaited_metadata")]

    operations = [
        AddColumn(
            "worker",
            "queue_limits",
            aiotasks.fields.ArrayField(base_field=models.IntegerField(null=True), null=True),
        )
    ]
