from typing import Any

from django.db import migrations, models

import aiotasks.fields

# A queue's rows are updated twice and then left alone, and there is always a flood of them:
# vacuum by the hundreds of thousands would come too late for the indexes' dead heads. Pages keep
# room for a row's two newer versions beside it; a lease's renewal must stay a HOT update.
# https://www.postgresql.org/docs/current/storage-hot.html
STORAGE: list[Any] = [
    """
    ALTER TABLE aiotasks_task SET (
        fillfactor = 70,
        autovacuum_vacuum_scale_factor = 0.01,
        autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.02,
        autovacuum_vacuum_cost_delay = 0
    )
    """,
    "ALTER TABLE aiotasks_worker SET (fillfactor = 50, autovacuum_vacuum_threshold = 500)",
]


class Storage(migrations.RunSQL):
    """Leaves the databases alone that have no tables of ours, as CreateModel does."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, "Task")
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            super().database_forwards(app_label, schema_editor, from_state, to_state)


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("backend", models.TextField()),
                ("host", models.TextField()),
                ("pid", models.IntegerField()),
                ("queues", aiotasks.fields.ArrayField(base_field=models.TextField())),
                ("concurrency", models.IntegerField()),
                ("threads", models.IntegerField()),
                ("version", models.TextField()),
                ("started_at", models.DateTimeField()),
                ("lease_expires_at", models.DateTimeField()),
            ],
            options={"required_db_vendor": "postgresql"},
        ),
        migrations.CreateModel(
            name="Task",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("backend", models.TextField()),
                ("queue_name", models.TextField()),
                ("task_path", models.TextField()),
                ("lane", models.TextField()),
                ("priority", models.SmallIntegerField()),
                (
                    "status",
                    models.TextField(
                        choices=[
                            ("SCHEDULED", "Scheduled"),
                            ("READY", "Ready"),
                            ("RUNNING", "Running"),
                            ("SUCCESSFUL", "Successful"),
                            ("FAILED", "Failed"),
                        ]
                    ),
                ),
                ("args", aiotasks.fields.JsonField()),
                ("kwargs", aiotasks.fields.JsonField()),
                ("return_value", aiotasks.fields.JsonField(null=True)),
                ("errors", aiotasks.fields.JsonArrayField()),
                ("worker_ids", aiotasks.fields.ArrayField(base_field=models.UUIDField())),
                ("crashes", models.SmallIntegerField()),
                ("max_crashes", models.SmallIntegerField(null=True)),
                ("claim_id", models.UUIDField(null=True)),
                ("worker_id", models.UUIDField(null=True)),
                ("enqueued_at", models.DateTimeField()),
                ("run_after", models.DateTimeField(null=True)),
                ("ready_at", models.DateTimeField(null=True)),
                ("started_at", models.DateTimeField(null=True)),
                ("last_attempted_at", models.DateTimeField(null=True)),
                ("finished_at", models.DateTimeField(null=True)),
                ("cancel_requested_at", models.DateTimeField(null=True)),
                ("unknown_since", models.DateTimeField(null=True)),
            ],
            options={
                "required_db_vendor": "postgresql",
                "indexes": [
                    models.Index(
                        models.F("backend"),
                        models.F("queue_name"),
                        models.F("lane"),
                        models.OrderBy(models.F("priority"), descending=True),
                        models.F("ready_at"),
                        models.F("id"),
                        condition=models.Q(("status", "READY")),
                        name="aiotasks_task_ready",
                    ),
                    models.Index(
                        condition=models.Q(("status", "SCHEDULED")),
                        fields=["backend", "run_after"],
                        name="aiotasks_task_scheduled",
                    ),
                    models.Index(
                        condition=models.Q(("status", "RUNNING")),
                        fields=["worker_id"],
                        name="aiotasks_task_running",
                    ),
                    models.Index(
                        condition=models.Q(("status__in", ["FAILED", "SUCCESSFUL"])),
                        fields=["finished_at"],
                        name="aiotasks_task_finished",
                    ),
                ],
            },
        ),
        Storage(STORAGE, migrations.RunSQL.noop),
    ]
