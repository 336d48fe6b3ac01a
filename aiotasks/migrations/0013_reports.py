from django.db import migrations, models

import aiotasks.fields

from ._online import AddColumn, AddTable


class Migration(migrations.Migration):
    """A nullable column, what a worker reports of itself; and a table, the figures of the queues.

    Workers of the release before go on: they leave the column NULL, and write no figures.
    """

    atomic = False

    dependencies = [("aiotasks", "0012_limits")]

    operations = [
        AddColumn("worker", "report", aiotasks.fields.JsonField(null=True)),
        AddTable(
            name="Sample",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("backend", models.TextField()),
                ("at", models.DateTimeField()),
                ("figures", aiotasks.fields.JsonField(null=True)),
            ],
            options={
                "required_db_vendor": "postgresql",
                "constraints": (
                    models.UniqueConstraint(fields=["backend", "at"], name="aiotasks_sample_at"),
                ),
            },
        ),
    ]
