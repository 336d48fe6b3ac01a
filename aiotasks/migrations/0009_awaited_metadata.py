from django.db import migrations, models

import aiotasks.fields

from ._online import AddColumn


class Migration(migrations.Migration):
    """Columns for joins and for metadata, nullable without a default.

    Workers and sites of the release before go on: they leave the columns as they are, and tell nobody of a
    task's end, which a join finds by its poll.
    """

    atomic = False

    dependencies = [("aiotasks", "0008_policies")]

    operations = [
        AddColumn("task", "awaited", models.SmallIntegerField(null=True)),
        AddColumn("task", "metadata", aiotasks.fields.JsonField(null=True)),
    ]
