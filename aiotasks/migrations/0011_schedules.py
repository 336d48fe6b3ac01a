from django.db import migrations, models
from django.db.models.functions import Greatest

import aiotasks.fields

from ._online import AddColumn, AddIndex, AddTable


class Migration(migrations.Migration):
    """The table of schedules, of which no release before knows, and what each worker's code declares."""

    atomic = False

    dependencies = [("aiotasks", "0010_queue_limits")]

    operations = [
        AddTable(
            name="Schedule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("backend", models.TextField()),
                ("name", models.TextField()),
                ("expression", models.TextField()),
                ("timezone", models.TextField()),
                ("missed", models.TextField()),
                ("missed_within", models.FloatField(null=True)),
                ("overlap", models.TextField(null=True)),
                ("jitter", models.FloatField(null=True)),
                ("task_path", models.TextField()),
                ("queue_name", models.TextField()),
                ("lane", models.TextField()),
                ("priority", models.SmallIntegerField()),
                ("args", aiotasks.fields.JsonField()),
                ("kwargs", aiotasks.fields.JsonField()),
                ("expires", models.FloatField(null=True)),
                ("metadata", aiotasks.fields.JsonField(null=True)),
                ("unique_key", models.TextField(null=True)),
                ("unique_period", models.FloatField(null=True)),
                ("unique_waiting", models.BooleanField(null=True)),
                ("limit_key", models.TextField(null=True)),
                ("ordered", models.TextField(null=True)),
                ("max_crashes", models.SmallIntegerField(null=True)),
                ("keep_result", models.FloatField(null=True)),
                ("from_code", models.BooleanField()),
                ("digest", models.TextField(null=True)),
                ("declared_in", models.TextField(null=True)),
                ("paused_at", models.DateTimeField(null=True)),
                ("pause_reason", models.TextField(null=True)),
                ("stopped_at", models.DateTimeField(null=True)),
                ("stopped_tick", models.DateTimeField(null=True)),
                ("next_at", models.DateTimeField(null=True)),
                ("retry_at", models.DateTimeField(null=True)),
                ("last_tick", models.DateTimeField(null=True)),
                ("skipped_tick", models.DateTimeField(null=True)),
                ("skipped", models.BigIntegerField()),
                ("failures", models.IntegerField()),
                ("error", models.TextField(null=True)),
            ],
            options={
                "required_db_vendor": "postgresql",
                "constraints": (
                    models.UniqueConstraint(fields=["backend", "name"], name="aiotasks_schedule_name"),
                ),
            },
        ),
        AddIndex(
            "schedule",
            models.Index(
                models.F("backend"),
                Greatest(models.F("next_at"), models.F("retry_at")),
                name="aiotasks_schedule_due",
                condition=models.Q(next_at__isnull=False),
            ),
        ),
        AddColumn("worker", "schedules", aiotasks.fields.ArrayField(models.TextField(), null=True)),
    ]
