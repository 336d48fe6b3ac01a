from typing import Any

from django.db import migrations, models
from django.db.models.lookups import LessThanOrEqual

from ._online import AddColumn, AddConstraint, AddIndex, AddTable, RemoveConstraint, Repair

# A key's row is updated by each claim of its tasks. Pages have room for the new version, so that no index is
# written, and dead versions must not pile up between two vacuums.
STORAGE = """
    ALTER TABLE aiotasks_limit SET (
        fillfactor = 50,
        autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0
    )
"""


# The release before claims from no other lanes.
WITHOUT_LIMITS = "UPDATE aiotasks_task SET lane = rtrim(lane, '+') WHERE lane IN ('loop+', 'thread+')"


class Storage(migrations.RunSQL):
    """Leaves the databases alone that have no tables of ours, as CreateModel does."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, "Limit")
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            super().database_forwards(app_label, schema_editor, from_state, to_state)


class Migration(migrations.Migration):
    """Limits by key: columns of tasks, all nullable without a default, their indexes, and a table.

    Workers of the release before don't claim tasks that have a limit, because they are in lanes of their own.
    Where the migration is reversed, these tasks are in the plain lanes again, and have no limit any more.
    """

    atomic = False

    dependencies = [("aiotasks", "0011_schedules")]

    operations = [
        AddColumn("task", "limit_key", models.CharField(max_length=301, null=True)),
        AddColumn("task", "limit_place", models.DateTimeField(null=True)),
        AddColumn("task", "limit_held", models.CharField(max_length=301, null=True)),
        AddColumn("task", "ordered", models.TextField(null=True)),
        Repair("task", backwards=WITHOUT_LIMITS),
        AddConstraint(
            "task",
            models.CheckConstraint(
                condition=models.Q(
                    LessThanOrEqual(
                        models.Func(
                            models.Func("backend", "queue_name", "lane", "limit_key", function="concat"),
                            function="octet_length",
                            output_field=models.IntegerField(),
                        ),
                        2560,
                    )
                ),
                name="aiotasks_task_keys_fit",
            ),
        ),
        RemoveConstraint("task", "aiotasks_task_names_fit"),
        AddIndex(
            "task",
            models.Index(
                models.F("backend"),
                models.F("queue_name"),
                models.F("lane"),
                models.F("limit_key"),
                models.OrderBy(models.F("priority"), descending=True),
                models.F("limit_place"),
                models.F("id"),
                condition=models.Q(("limit_key__isnull", False), ("status", "READY")),
                name="aiotasks_task_keyed",
            ),
        ),
        AddIndex(
            "task",
            models.Index(
                condition=models.Q(("limit_held__isnull", False)),
                fields=["backend", "limit_held", "limit_place"],
                name="aiotasks_task_held",
            ),
        ),
        AddIndex(
            "task",
            models.Index(
                models.F("backend"),
                models.F("limit_key"),
                models.F("status"),
                models.OrderBy(models.F("priority"), descending=True),
                models.F("limit_place"),
                models.F("id"),
                condition=models.Q(("ordered__isnull", False)),
                name="aiotasks_task_ordered",
            ),
        ),
        AddColumn("worker", "claims_keyed", models.BooleanField(null=True)),
        AddTable(
            name="Limit",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "backend", "key", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("backend", models.TextField()),
                ("key", models.CharField(max_length=301)),
                ("claimed_at", models.DateTimeField(null=True)),
                ("level", models.FloatField(db_default=0.0)),
                ("paid_at", models.DateTimeField(null=True)),
                ("busy_since", models.DateTimeField(null=True)),
                ("closed_until", models.DateTimeField(null=True)),
                ("paused_at", models.DateTimeField(null=True)),
                ("pause_reason", models.TextField(null=True)),
                ("concurrency", models.IntegerField(null=True)),
                ("rate", models.TextField(null=True)),
                ("pace", models.FloatField(null=True)),
                ("burst", models.IntegerField(null=True)),
                ("weight", models.IntegerField(null=True)),
            ],
            options={
                "required_db_vendor": "postgresql",
                "constraints": (
                    models.CheckConstraint(
                        condition=models.Q(
                            ("level__range", (0, 1e9)),
                            models.Q(("pace__isnull", True), ("pace__range", (0, 1e9)), _connector="OR"),
                            models.Q(("concurrency__isnull", True), ("concurrency__gte", 0), _connector="OR"),
                            models.Q(
                                ("burst__isnull", True), ("burst__range", (1, 1_000_000)), _connector="OR"
                            ),
                            models.Q(
                                ("weight__isnull", True), ("weight__range", (1, 1_000_000)), _connector="OR"
                            ),
                        ),
                        name="aiotasks_limit_values",
                    ),
                ),
            },
        ),
        Storage(STORAGE, migrations.RunSQL.noop),
    ]
