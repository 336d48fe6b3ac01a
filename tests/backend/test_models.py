"""The models as Django's own tools use them: fixtures, saves, look-ups, forms."""

import io
import json
import warnings
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.core.serializers import deserialize, serialize
from django.db import connection
from django.db.models import F, JSONField, Value
from django.forms import modelform_factory
from django.utils import timezone

from aiotasks.models import Task, Worker
from aiotasks.testing import drain
from tests import tasks

# What JSON can hold, and jsonb or a careless reading would change.
VALUES: list[Any] = [
    {"z": 1, "a": [1, 2.5, -0.0, 10**30, 1e300], "ü": "é 'quoted' \"twice\" \\ %s \\u0000"},
    "['ann']",
    '{"a": 1}',
    "null",
    "",
    [],
    {},
    [[]],
    0,
    -0.0,
    False,
    [None, True, "x"],
    "a, b; {c}",
]


def new(**fields: Any) -> Task:
    now = timezone.now()
    values = {
        "id": uuid4(),
        "backend": "default",
        "queue_name": "default",
        "task_path": "tests.tasks.echo",
        "lane": "thread",
        "priority": 0,
        "status": "SUCCESSFUL",
        "args": VALUES,
        "kwargs": {"value": VALUES},
        "return_value": VALUES,
        "errors": [{"class": "a.B", "traceback": 'line, {1}\n"line" \\ 2'}, {"class": "c", "traceback": ""}],
        "worker_ids": [uuid4(), uuid4()],
        "crashes": 0,
        "enqueued_at": now,
        "ready_at": now,
        "started_at": now,
        "last_attempted_at": now,
        "finished_at": now,
    }
    return Task(**{**values, **fields})


def content(task: Any) -> Any:
    """All of it, with the order of keys."""
    names = ("args", "kwargs", "return_value", "errors", "worker_ids")
    return json.dumps([getattr(task, name) for name in names], default=str)


def raw() -> Any:
    """What the table holds, with the order of keys, but for spaces."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT args::text, kwargs::text, return_value::text, errors::text[], worker_ids::text[] "
            "FROM aiotasks_task ORDER BY id"
        )
        return [
            [text and json.dumps(json.loads(text)) for text in (args, kwargs, value)]
            + [[json.dumps(json.loads(error)) for error in errors], ids]
            for args, kwargs, value, errors, ids in cursor.fetchall()
        ]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_value_is_kept_exactly(database: str, value: Any) -> None:
    """By save, by the admin's way of reading, and by dumpdata and loaddata."""
    task = new(args=[value], kwargs={"value": value}, return_value=value)
    task.save(force_insert=True)
    assert json.dumps(Task._meta.get_field("return_value").value_from_object(task)) == json.dumps(value)
    before = raw()
    assert before[0][:3] == [json.dumps(one) for one in ([value], {"value": value}, value)]
    assert content(Task.objects.get()) == content(task)
    for form in ("json", "xml", "jsonl"):
        text = serialize(form, Task.objects.all())
        Task.objects.all().delete()
        for loaded in deserialize(form, text):
            loaded.save()
        assert raw() == before, form
    for lookup in ({"return_value": value}, {"args": [value]}, {"kwargs__value": value}, {"args__0": value}):
        assert Task.objects.filter(**lookup).count() == 1, lookup
        assert Task.objects.exclude(**lookup).count() == 0, lookup


def test_what_tasks_wrote_goes_through_fixtures(database: str, tmp_path: Any) -> None:
    """And is the same task afterwards: one that waits runs."""
    Worker.objects.create(
        id=uuid4(),
        backend="site",
        host="h",
        pid=1,
        queues=["a,b", '"c"', ""],
        concurrency=1,
        threads=1,
        version="1",
        started_at=timezone.now(),
        lease_expires_at=timezone.now(),
    )
    done, failed = tasks.echo.enqueue("ann", key=[1]), tasks.fail.enqueue()
    assert drain() == 2
    waiting = tasks.echo.enqueue({"b": 1, "a": 2}, "['ann']")
    before = raw()
    fixture = tmp_path / "dump.json"
    call_command("dumpdata", "aiotasks", output=str(fixture), verbosity=0)
    Task.objects.all().delete()
    Worker.objects.all().delete()
    call_command("loaddata", str(fixture), verbosity=0)
    assert raw() == before
    assert Worker.objects.get().queues == ["a,b", '"c"', ""]
    for result in (done, failed, waiting):
        result.refresh()
    assert done.return_value == [["ann"], {"key": [1]}]
    assert failed.errors[0].exception_class is ValueError
    assert drain() == 1
    waiting.refresh()
    assert waiting.return_value == [[{"b": 1, "a": 2}, "['ann']"], {}]


def test_serialized_rollback(database: str) -> None:
    """What Django does with the rows of data migrations around each TransactionTestCase of that kind."""
    waiting = tasks.echo.enqueue("ann", key={"b": 1, "a": 2})
    before = raw()
    text = connection.creation.serialize_db_to_string()
    Task.objects.all().delete()
    connection.creation.deserialize_db_from_string(text)
    assert raw() == before
    assert drain() == 1
    waiting.refresh()
    assert waiting.return_value == [["ann"], {"key": {"b": 1, "a": 2}}]


def test_saves_of_every_kind(database: str) -> None:
    one, two = new(), new(return_value=None, errors=[], worker_ids=[])
    Task.objects.bulk_create([one, two])
    assert {content(task) for task in Task.objects.all()} == {content(one), content(two)}
    assert Task.objects.filter(return_value__isnull=True).get() == two
    one.return_value, two.return_value = {"z": 1, "a": -0.0}, "['ann']"
    Task.objects.bulk_update([one, two], ["return_value"])
    assert {content(task) for task in Task.objects.all()} == {content(one), content(two)}
    one.args, one.errors = ["b", "a"], [{"z": 1, "a": None}]
    one.save()
    assert content(Task.objects.get(pk=one.pk)) == content(one)
    Task.objects.filter(pk=one.pk).update(args=[1], errors=[], worker_ids=[uuid4()], kwargs={"a": 1})
    Task.objects.filter(pk=one.pk).update(return_value=F("kwargs"))
    one.refresh_from_db()
    assert (one.args, one.errors, len(one.worker_ids), one.return_value) == ([1], [], 1, {"a": 1})
    Task.objects.filter(pk=one.pk).update(return_value=Value(None, JSONField()))
    Task.objects.filter(pk=two.pk).update(return_value=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Django 6.1 on JSONNull() is the name of JSON's null
        assert Task.objects.get(return_value=None).pk == one.pk  # JSON's null; the other's is SQL's
    assert Task.objects.get(return_value__isnull=True).pk == two.pk
    three = Task.objects.create(**{name: getattr(new(), name) for name in _columns()})
    assert content(Task.objects.get(pk=three.pk)) == content(three)


def test_lookups_compare_values_not_text(database: str) -> None:
    task = new(args=[1, {"b": 2, "a": 1}], kwargs={"host": "mine", "deep": {"list": [1, 2]}})
    task.save(force_insert=True)
    found = Task.objects.filter
    for lookup in (
        {"args": [1, {"a": 1, "b": 2}]},
        {"args": [1.0, {"b": 2, "a": 1}]},
        {"args__contains": [1]},
        {"args__0": 1},
        {"args__0__gte": 1},
        {"args__1__b__in": [2, 3]},
        {"kwargs__host": "mine"},
        {"kwargs__host__startswith": "mi"},
        {"kwargs__deep__list__1": 2},
        {"kwargs__has_key": "host"},
        {"kwargs__has_keys": ["host", "deep"]},
        {"kwargs__contains": {"deep": {"list": [2]}}},
        {"kwargs__contained_by": {"host": "mine", "deep": {"list": [1, 2, 3]}, "more": 1}},
        {"errors__len": 2},
        {"errors": task.errors},
        {"errors__contains": task.errors[:1]},
        {"errors__0__class": "a.B"},
        {"worker_ids": task.worker_ids},
        {"worker_ids__contains": task.worker_ids[:1]},
        {"worker_ids__len": 2},
        {"worker_ids__1": task.worker_ids[1]},
        {"kwargs__missing__isnull": True},
    ):
        assert found(**lookup).count() == 1, lookup
    for lookup in (
        {"args": [1]},
        {"kwargs__host": "other"},
        {"errors": []},
        {"worker_ids__contains": [uuid4()]},
    ):
        assert found(**lookup).count() == 0, lookup
    assert list(Task.objects.values_list("kwargs__deep__list", "kwargs__host", "args")) == [
        ([1, 2], "mine", task.args)
    ]
    assert json.dumps(Task.objects.annotate(copy=F("kwargs")).get().copy) == json.dumps(task.kwargs)
    assert Task.objects.order_by("args").distinct().count() == 1
    assert Task.objects.filter(pk__in=Task.objects.filter(kwargs=F("kwargs")).values("pk")).exists()


def test_forms(database: str) -> None:
    """As an admin's change form reads and writes a row."""
    task = new()
    task.save(force_insert=True)
    kind = modelform_factory(
        Task, fields=["args", "kwargs", "return_value", "errors", "worker_ids", "status"]
    )
    form = kind(instance=task)
    data = {name: form[name].value() for name in form.fields}
    shown = kind(data, instance=Task.objects.get())
    assert shown.is_valid(), shown.errors
    shown.save()
    assert content(Task.objects.get()) == content(task)


def test_django_sees_no_change(database: str) -> None:
    """No migration is missing, and none has touched the columns' types."""
    out = io.StringIO()
    call_command("makemigrations", "aiotasks", check=True, dry_run=True, stdout=out)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name, udt_name FROM information_schema.columns WHERE table_name = 'aiotasks_task' "
            "AND column_name IN ('args', 'errors', 'worker_ids') ORDER BY column_name"
        )
        assert cursor.fetchall() == [("args", "json"), ("errors", "_json"), ("worker_ids", "_uuid")]
    call_command("check", databases=["default"], stdout=out)


def _columns() -> list[str]:
    return [field.attname for field in Task._meta.concrete_fields]
