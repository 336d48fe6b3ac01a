from django.db import migrations, models

from ._online import AddColumn, AddIndex, AddTable, AddUnique


class Migration(migrations.Migration):
    """Columns and indexes of the policies, all nullable without a default; and the table of pauses.

    Workers of the release before go on: they leave the columns NULL, and start what is paused or has expired.
    """

    atomic = False

    dependencies = [("aiotasks", "0007_worker_channel")]

    operations = [
        AddColumn("task", "asked_run_after", models.DateTimeField(null=True)),
        AddColumn("task", "expires_at", models.DateTimeField(null=True)),
        AddColumn("task", "failures", models.SmallIntegerField(null=True)),
        AddColumn("task", "errors_omitted", models.IntegerField(null=True)),
        AddColumn("task", "snoozes", models.SmallIntegerField(null=True)),
        AddColumn("task", "unique_key", models.TextField(null=True)),
        AddColumn("task", "unique_until", models.DateTimeField(null=True)),
        AddColumn("task", "unique_waiting", models.BooleanField(null=True)),
        AddColumn("task", "former_key", models.TextField(null=True)),
        AddColumn("worker", "stuck_threads", models.IntegerField(null=True)),
        AddIndex(
            "task",
            models.Index(
                fields=["backend", "status", "expires_at"],
                name="aiotasks_task_expiring",
                condition=models.Q(expires_at__isnull=False),
            ),
        ),
        AddUnique(
            "task",
            models.UniqueConstraint(
                fields=["backend", "unique_key"],
                name="aiotasks_task_unique",
                condition=models.Q(unique_key__isnull=False),
            ),
        ),
        AddTable(
            name="Pause",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("backend", models.TextField()),
                ("kind", models.TextField(choices=[("queue", "Queue"), ("task", "Task")])),
                ("name", models.TextField()),
                ("reason", models.TextField()),
                ("paused_at", models.DateTimeField()),
                ("until", models.DateTimeField(null=True)),
            ],
            options={
                "required_db_vendor": "postgresql",
                "constraints": (
                    models.UniqueConstraint(fields=["backend", "kind", "name"], name="aiotasks_pause_name"),
                ),
            },
        ),
    ]
