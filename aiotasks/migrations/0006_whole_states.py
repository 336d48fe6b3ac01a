from django.db import migrations, models

from ._online import AddConstraint, Repair

FINISHED = ["SUCCESSFUL", "FAILED"]
UPDATE = "UPDATE aiotasks_task SET"


class Migration(migrations.Migration):
    """Refuse a status without the time that belongs to it: no statement would claim, promote or prune the
    row.

    No release writes such a row. Rows that were written by hand get the time of the migration.
    """

    atomic = False

    dependencies = [("aiotasks", "0005_names_fit")]

    operations = [
        AddConstraint(
            "task",
            models.CheckConstraint(
                condition=~models.Q(status="READY") | models.Q(ready_at__isnull=False),
                name="aiotasks_task_ready_needs_ready_at",
            ),
        ),
        AddConstraint(
            "task",
            models.CheckConstraint(
                condition=~models.Q(status="SCHEDULED") | models.Q(run_after__isnull=False),
                name="aiotasks_task_scheduled_needs_run_after",
            ),
        ),
        AddConstraint(
            "task",
            models.CheckConstraint(
                condition=~models.Q(status__in=FINISHED) | models.Q(finished_at__isnull=False),
                name="aiotasks_task_finished_needs_finished_at",
            ),
        ),
        Repair("task", f"{UPDATE} ready_at = now() WHERE status = 'READY' AND ready_at IS NULL"),
        Repair("task", f"{UPDATE} run_after = now() WHERE status = 'SCHEDULED' AND run_after IS NULL"),
        Repair(
            "task",
            f"{UPDATE} finished_at = now() WHERE status IN ('SUCCESSFUL', 'FAILED') AND finished_at IS NULL",
        ),
    ]
