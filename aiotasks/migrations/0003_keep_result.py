from django.db import migrations, models

from ._online import AddColumn, AddIndex, RemoveIndex


class Migration(migrations.Migration):
    """``keep_result``, and indexes for the pruner. Workers and sites of the release before go on working."""

    atomic = False

    dependencies = [("aiotasks", "0002_worker_listening")]

    operations = [
        AddColumn("task", "keep_result", models.FloatField(null=True)),
        AddIndex(
            "task",
            models.Index(
                condition=models.Q(("finished_at__isnull", False), ("keep_result__isnull", True)),
                fields=["backend", "status", "finished_at"],
                name="aiotasks_task_prunable",
            ),
        ),
        AddIndex(
            "task",
            models.Index(
                models.F("backend"),
                models.Func(
                    models.F("finished_at"),
                    template="date_part('epoch', %(expressions)s AT TIME ZONE 'UTC')",
                    output_field=models.FloatField(),
                )
                + models.F("keep_result"),
                condition=models.Q(("finished_at__isnull", False), ("keep_result__isnull", False)),
                name="aiotasks_task_kept",
            ),
        ),
        RemoveIndex("task", "aiotasks_task_finished"),
    ]
