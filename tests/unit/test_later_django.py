"""A later Django whose TaskResult, Task and TaskContext have more fields, with defaults."""

import subprocess
import sys

SCRIPT = """
import copy, pickle
from dataclasses import dataclass, field
import django.tasks, django.tasks.base as base

def more(kind):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class More(kind):
        metadata: dict = field(default_factory=dict)
        extra: dict = field(default_factory=dict)
        note: str = "none"
    More.__name__ = More.__qualname__ = kind.__name__
    return More

for kind in (base.TaskResult, base.Task, base.TaskContext):
    later = more(kind)
    later.__module__ = base.__name__
    setattr(base, kind.__name__, later)
    setattr(django.tasks, kind.__name__, later)
base.TASK_REFRESH_ATTRS |= {"metadata", "note"}
import django.conf
django.conf.settings.configure(INSTALLED_APPS=["aiotasks"], TASKS={"default": {
    "BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": []}}, USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}})
django.setup()
from dataclasses import FrozenInstanceError, fields, replace
from uuid import uuid4
from types import SimpleNamespace
from aiotasks.context import PostgresTaskContext
from aiotasks.metadata.running import RunningMetadata
from aiotasks.policies.policy import NO_POLICY
from aiotasks.rows import Job
from aiotasks.results import new_result
from aiotasks.row_results import result_of
from tests import tasks

task = tasks.add
text = '{"a": [1], "_ours": 2}'
one, other = (new_result(task, str(uuid4()), None, [1, 2], {}, "default", text) for _ in range(2))
assert (one.extra, one.note, one.args) == ({}, "none", [1, 2]), one
one.extra["mine"] = 1
assert other.extra == {}
# The field that it has is the property of aiotasks' own class.
for each in (one, replace(one, note="other"), copy.deepcopy(one)):
    each.metadata["a"].append("to a copy")
    assert (each.metadata, each.raw_metadata) == ({"a": [1]}, {"a": [1], "_ours": 2})
assert other != one
if django.VERSION >= (6, 1):  # Django's own Task can't be pickled before
    assert pickle.loads(pickle.dumps(one)) == one
assert "metadata={'a': [1]}" in repr(one)
assert "extra={'mine': 1}" in repr(one)
values = {field.name: None for field in fields(Job)}
values |= {"id": uuid4(), "backend": "default", "queue_name": "elsewhere", "task_path": task.module_path}
values |= {"lane": "thread", "priority": 5, "status": "READY", "args": "[1]", "kwargs": "{}", "errors": []}
job = Job(**values | {"worker_ids": [], "policy": NO_POLICY, "enqueued_at": bytes(8), "ready_at": bytes(8)})
read = result_of(job, {})
assert (read.metadata, read.extra, read.note, read.args) == ({}, {}, "none", [1])
assert result_of(job, {}).extra is not read.extra
job.metadata = '{"a": 2}'
read.update(result_of(job, {}))
assert read.metadata == {"a": 2}
assert (read.task.metadata, read.task.note, read.task.priority) == ({}, "none", 5)
assert task.using(priority=3).note == "none"
assert task.using(metadata={"a": 1}).metadata == {"a": 1}

# The context's, too: what a task changes there is what is saved.
saved = []
metadata = RunningMetadata(uuid4(), uuid4(), text, SimpleNamespace(save_soon=saved.append))
attempt = SimpleNamespace(limit=None, metadata=metadata, is_cancelled=lambda: False)
context = PostgresTaskContext(task_result=one, running=attempt)
assert (context.extra, context.note, context.attempt) == ({}, "none", 0)
context.metadata["b"] = 2
context.save_metadata()
assert saved == [metadata] and metadata.begin()
assert metadata.text == '{"a":[1],"_ours":2,"b":2}', metadata.text
assert "extra={}" in repr(context)
for each in (one, context):
    try:
        each.metadata = {}
    except FrozenInstanceError:
        assert each.metadata["a"]
    else:
        raise AssertionError(each)
print("fine")
"""


def test_what_it_adds_takes_its_defaults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
