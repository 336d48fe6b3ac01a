"""Call every method of the Store once over DjangoDriver, and print what came back as JSON.

``python -m tests.store.every_method psycopg|psycopg2``: a process, as Django decides once which it uses.
"""

# ruff: noqa: E402  # Django must be set up first

import json
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

if sys.argv[1] == "psycopg2":
    sys.modules["psycopg"] = None  # type: ignore[assignment]  # as if it weren't installed

import django

django.setup()

from django.core.serializers import deserialize, serialize
from django.db import connection
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test.utils import CaptureQueriesContext

from aiotasks.db.drivers import DjangoDriver
from aiotasks.filters import TaskFilter
from aiotasks.models import Task
from aiotasks.policies.policy import Policy
from aiotasks.policies.unique import UniqueRule
from aiotasks.rows import Job, LaneRequest, Status, UniqueJob, time_of
from aiotasks.store.bulk import Leg, Meant, Place
from aiotasks.store.limits import KeyRequest, LimitRule, LimitSetting
from aiotasks.store.listing import LAST_ID, Walk
from aiotasks.store.metadata import MetadataWrite
from aiotasks.store.outcomes import Finish, Release
from aiotasks.store.schedules import DeclaredSchedule, Move
from aiotasks.store.store import Store
from aiotasks.store.wakeups import Wakeup
from aiotasks.sync import drive
from tests.store.rows import EVER, methods_of_the_store, new_job, new_schedule

store = Store(DjangoDriver("default"))
called: set[str] = set()


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    called.add(name)
    return drive(getattr(store, name)(*args, **kwargs))


def shown(job: Job) -> list[Any]:
    enqueued = time_of(job.enqueued_at)
    values = [job.id.int, job.status, job.args, job.return_value, job.errors, len(job.worker_ids)]
    return [*values, enqueued is not None and abs(datetime.now(UTC) - enqueued) < timedelta(hours=1)]


def unique_keys() -> list[Any]:
    """A new task, its duplicates, and a replaced one: of a backend that no worker here serves."""
    rule = UniqueRule(None, waiting=True, on_conflict="replace", keep_run_after=False)
    first, second, third = (
        UniqueJob(job.id, job.template, job.args, job.kwargs, job.enqueued_at, key, rule)
        for job, key in ((new_job(backend="unique", args=f'["%{n}"]'), f"% $1 {n}") for n in (1, 1, 2))
    )
    lock = {"lock_timeout": 1.0}
    seen: list[Any] = [call("insert_unique_job", first, **lock), *call("insert_unique_job", second, **lock)]
    seen[-1] = seen[-1].args
    seen.append(sorted(call("insert_unique_jobs", [second, third], **lock)))
    seen += [
        {key: job.args for key, job in call(name, "unique", [first.key, "no"], **lock).items()}
        for name in ("free_unique_keys", "lock_unique_keys")
    ]
    replaced = call("replace_waiting_jobs", [uuid.UUID(first.id)], [second], **lock)
    seen.append({key: [job.args, str(job.id) == first.id] for key, job in replaced.items()})
    return seen


def schedules() -> list[Any]:
    """Declared, due, moved on, failed, paused, stopped and removed."""
    ago = datetime.now(UTC) - timedelta(hours=1)
    code = new_schedule("% $1", args='["%", "\\u0000"]', overlap=None, unique_key="k", jitter=0.5)
    own = new_schedule("o", policy=Policy(max_crashes=2), metadata='{"%": 1}')
    written = [DeclaredSchedule(code, code.digest(), ago), DeclaredSchedule(own, own.digest(), None)]
    seen: list[Any] = [
        [each == ago for each in call("declare_schedules", "s", written, from_code=True).values()],
        call("declare_schedules", "s", written, from_code=True),
        list(call("declare_schedules", "s", [DeclaredSchedule(own, None, None)], from_code=False)),
        [each[:5] for each in call("select_declared", "s")[1] if each.name == "o"],
    ]
    (due,) = call("select_due_schedules", "s", 10)
    seen.append([due.name, due.missed, due.next_at == ago, due.failures, due.is_apart, due.size])
    seen.append(call("fail_schedules", "s", [(due, "% no")], shortest=1.0, longest=9.0))
    seen.append(call("move_schedules", "s", [Move(due, None, ago)]) == {code.name: code})
    call("skip_ticks", "s", [(code.name, ago, 2)])
    seen.append(call("select_holders", "s", ["%", "aiotasks:schedule:%"]))
    seen += [call("pause_schedule", "s", name, "why %") for name in ("o", "none")]
    seen += [call("resume_schedule", "s", own, ago) for _ in range(2)]
    call("announce_schedules", uuid.UUID(int=1), ["o", code.name])  # there is no such worker
    seen.append(call("stop_schedules", "s", ["o", "none", code.name]))
    rows = call("select_schedules", "s").rows
    seen.append([row.schedule in (code, own) for row in rows])
    seen.append([[row.skipped, row.failures, row.error, row.last_tick == ago, row.next_at] for row in rows])
    seen += [call("delete_schedule", "s", name) for name in ("o", "o", code.name)]
    seen.append(len(call("select_schedules", "s", ["o"]).rows))
    return seen


def limits() -> list[Any]:
    """Keyed tasks, of a backend that no worker here serves, and what is said of their limits."""
    keys = [f"mail:% $1 {n}" for n in range(2)]
    jobs = [
        new_job(id=str(uuid.UUID(int=90 + n)), backend="limits", limit_key=keys[n % 2], ordered="stop")
        for n in range(4)
    ]
    call("insert_jobs", jobs)
    me, claim_id = uuid.uuid4(), uuid.uuid4()
    call("register_worker", me, "limits", "host", 1, [], 1, 1, "0", 60.0)
    requests = [KeyRequest("default", key) for key in keys]
    rules = [LimitRule("mail", ordered=True, pace=60.0, burst=2)]
    claim = ("claim_keyed", me, claim_id, "limits", "loop", 10, requests, rules)
    seen: list[Any] = [[one.state for one in call(*claim).seen]]
    call("insert_limits", "limits", keys)
    claimed = call(*claim)
    seen.append(sorted([job.id.int, job.limit_key, job.lane] for job in claimed.jobs))
    seen.append([[one.state, one.given, one.places, one.starts] for one in claimed.seen])
    finish = [Finish(job.id, claim_id, Status.FAILED, None, "{}") for job in claimed.jobs]
    call("finish_jobs", finish)
    call("set_limit", "limits", "mail", LimitSetting(burst=5, rate="60/h", pace=60.0))
    call("pause_limit", "limits", keys[1], "why % $1")
    call("close_keys", "limits", [(keys[0], 60.0)])
    states = call("select_limits", "limits", "mail", 10)
    seen.append([[one.key, one.running, str(one.stopped_by), *one.said, one.pause_reason] for one in states])
    seen.append(call("release_line", finish[0].id, "limits"))
    seen.append([call(name, "limits", keys[1]) for name in ("resume_limit", "reset_limit")])
    found = call("list_keys", "limits", "loop", [("default", "")], 10)
    seen.append(found)
    seen.append(call("top_keys", "limits", "loop", ["default"], 10) == found)
    seen.append(call("recent_keys", "limits", "loop", ["default"], 60.0, 10) == found)
    seen.append(call("list_keyed_suspects", "limits", "loop", None))
    seen.append(call("count_limited_jobs", "limits", ["default", "none"], 10))
    seen.append({key: one.number for key, one in call("count_keyed_jobs", "limits", keys, 10).items()})
    seen.append(call("prune_limits", "limits", "", 10))
    call("remove_worker", me)
    return seen


def main() -> list[Any]:
    queue = "q % $1 %s"
    texts = {"queue_name": queue, "args": '["\\u0000", -0.0]', "kwargs": '{"%s": 1}'}
    jobs = [new_job(id=str(uuid.UUID(int=n)), priority=n, **texts) for n in range(1, 8)]
    later = datetime.now(UTC) + timedelta(hours=1)
    jobs.append(new_job(id=str(uuid.UUID(int=8)), run_after=later, **texts))
    call("insert_jobs", jobs[1:])
    call("insert_job", jobs[0])
    me, other, dead, claim_id = (uuid.uuid4() for _ in range(4))
    call("register_worker", me, "default", "host", 1, [queue], 1, 1, "0", 60.0)
    call("register_worker", other, "other", "host", 1, [], 1, 1, "0", 60.0)
    call("register_worker", dead, "default", "host", 1, [], 1, 1, "0", -1.0)
    seen: list[Any] = [
        call("list_queues", "default"),
        call("has_unfinished_jobs", "default", None, ["loop"]),
        call("has_unfinished_jobs", "default", ["x"], ["loop"], unknown=["x"]),
        call("next_due", "default").seconds > 0,
    ]
    lanes = {"loop": LaneRequest([queue], [EVER], 5), "thread": LaneRequest([], [], 0)}
    claimed = call("claim_jobs", me, claim_id, "default", **lanes)
    claimed.sort(key=lambda job: -job.priority)
    seen.append([shown(job) for job in claimed])
    ready = call("count_ready_jobs", "default", [queue, "none"], 2)
    seen.append([ready[queue].number, ready[queue].oldest >= 0, ready["none"]])
    seen.append(call("count_scheduled_jobs", "default", 10))
    running = call("count_running_jobs", "default", 4)
    seen.append([[one.queue_name, one.worker_id == me, one.lane, one.number] for one in running])
    done, failed, given_back, deferred, asked = (job.id for job in claimed)
    text = '{"% $1": "\\u0000", "a": -0.0}'
    writes = [MetadataWrite(done, claim_id, text, None), MetadataWrite(failed, claim_id, None, text)]
    seen.append([call("save_metadata", writes)[id] for id in (done, failed)])
    seen.append([call("replace_metadata", done, "default", "{}", was) for was in (None, text)])
    error = json.dumps({"class": "x", "traceback": 'é, } {" %'})
    outcomes = [
        Finish(done, claim_id, Status.SUCCESSFUL, '"%"', None),
        Finish(failed, claim_id, Status.FAILED, None, error),
    ]
    awaited = call("await_jobs", [done, failed, uuid.UUID(int=99)], "default", 1)
    seen.append([sorted(id.int for id in ids) for ids in awaited])
    seen.append(sorted(id.int for id in call("finish_jobs", outcomes).awaited))
    awaited = call("select_ended_jobs", [done, given_back, uuid.UUID(int=99)], "default")
    seen.append([sorted(id.int for id in ids) for ids in awaited])
    own = call("select_own_jobs", [done, given_back, uuid.UUID(int=99)], "default")
    seen.append(sorted(id.int for ids in own for id in ids))
    mine = call("select_finished_jobs", [job.id for job in claimed], [claim_id] * 5)
    seen.append(sorted(id.int for id in mine))
    releases = [Release(given_back, claim_id, 0.0, error=error), Release(deferred, claim_id, 5.0, 60.0)]
    seen.append({id.int: each.queue_name for id, each in call("release_jobs", releases).items()})
    cancelled = call("cancel_jobs", [asked, uuid.UUID(int=1)], "default", error)
    seen.append(sorted(shown(job) for job in cancelled))
    seen.append([id.int for id in call("select_cancelled_jobs", me)])
    seen.append([shown(job) for job in call("release_lost_claims", me, [claim_id], 0.0, error)])
    seen.append(call("claim_suspect", me, uuid.uuid4(), "default", "loop", ["default"]))
    seen.append(call("promote_due_jobs", "default", 10))
    seen.append(call("promote_due_jobs", "default", 10, only=[uuid.UUID(int=1)], refused=[uuid.UUID(int=2)]))
    seen.append(call("list_due_jobs", "default", 10, refused=[uuid.UUID(int=1)]))
    seen.append(call("insert_pause", "default", "queue", "%", 'why "%s"', None, 60.0)[:3])
    seen.append([one[:3] for one in call("select_pauses", "default")])
    seen.append([call("delete_pause", "default", "queue", "%") for _ in range(2)])
    seen.append([shown(job) for job in call("expire_jobs", "default", error, 10)])
    seen.append(call("renew_lease", me, 60.0, True)[:-1])
    seen.append(call("are_leases_locked"))
    workers = call("select_workers", "default")
    seen.append(sorted([row.id == me, *row[1:6], row.version, row.lease > 0] for row in workers))
    seen.append([(row.listening, row.has_channel) for row in workers if row.id == me])
    seen.append([row[1:] for row in call("count_live_workers")])
    call("oldest_snapshot")
    seen.append([call("inspect_server")[:5], call("select_storage")])
    rights = call("select_rights")
    seen.append([rights.role, sorted(rights.granted), rights.schemas])
    seen.append([call("select_row_security"), call("list_waiting", 10), call("notify_queue").usage])
    seen.append([str(value) for value in call("describe_session")])
    seen.append([call("count_failed_jobs", "default", 10), call("oldest_running_job", "default", 10) is None])
    seen.append([sorted(call("select_migrations")), sorted(call("select_indexes"))])
    seen.append([call("read_clock").tzinfo is not None, call("backend_pid") > 0])
    ever, month = float("-inf"), 30 * 86_400.0
    seen.append(call("prune_jobs", "default", "FAILED", month, ever, 10).number)
    seen.append(call("prune_kept_jobs", "default", ever, 10).number)
    seen.append([id == dead for id in call("remove_dead_workers", "default", me)])
    call("remove_worker", me)
    seen.append([shown(job) for job in call("rescue_jobs", "default", 3, error, 10, '{"c": 1}', other)])
    found = call("select_jobs", [uuid.UUID(int=n) for n in range(12)], "default")
    seen.append(sorted(shown(job) for job in found))
    states = call("select_states", [uuid.UUID(int=n) for n in range(12)], "default")
    seen.append(
        sorted(
            [state.id.int, state.status, state.metadata, state.attempts, str(state.finished_at)[:2]]
            for state in states
        )
    )
    seen.append(lists(queue))
    seen.append(bulk([job.id for job in found], queue, error))
    call("wait_for_standbys")
    seen.append(call("notify", "aiotasks", ["a", "b"], alone=True))
    seen.append(call("wake_workers", "aiotasks", [Wakeup("default", "%", lane="loop")]))
    with CaptureQueriesContext(connection) as queries:
        unseen = Store(DjangoDriver("default", logged=False))
        seen.append(drive(unseen.notify("aiotasks", ["a", "%"], alone=True)))
    seen.append(len(queries))
    seen.append(call("has_claimable", "default", ["%", queue], ["loop", "thread"], 3600.0))
    ids = [call("begin_sample", "%", 3600.0) for _ in range(2)]
    call("finish_sample", ids[0], '{"%": "$1"}')
    seen.append([ids[1], [one.figures for one in call("select_samples", "%", 3600.0, 10)]])
    seen.append(unique_keys())
    seen.append(schedules())
    seen.append(limits())
    seen.append(models())
    return seen


def lists(queue: str) -> list[Any]:
    """What operators read of tasks."""
    seen: list[Any] = []
    legs = call("list_ready", "default", queue)
    for walk, place in [
        (Walk("newest"), Place(0.0, LAST_ID)),
        (Walk("ready", [Status.READY], legs), Place(float("inf"), LAST_ID)),
        (Walk("scheduled", [Status.SCHEDULED]), Place()),
        (Walk("running", [Status.RUNNING]), Place(float("inf"), LAST_ID)),
        (Walk("finished", [Status.FAILED]), Place(float("inf"), LAST_ID)),
        (Walk("kept", [Status.FAILED, Status.SUCCESSFUL]), Place(float("inf"), LAST_ID)),
    ]:
        look = call("page_jobs", "default", walk, place, 50, 10, TaskFilter(queue_name=queue, error=None))
        seen.append([walk.branch, [place.id.int for place in look.found], look.looked_at, look.capped])
        listed = call("select_listed", [place.id for place in look.found], "default")
        seen.append(sorted([id.int, row.status, row.attempts, row.error] for id, row in listed.items()))
    looked_at, complete, groups = call("count_failures", "default", 10, 10, TaskFilter(queue_name=queue))
    seen.append([looked_at, complete, [[one.error, one.number] for one in groups]])
    detail = call("select_detail", uuid.UUID(int=1), "default")
    seen.append([detail.id.int, detail.args, detail.errors, len(detail.worker_ids)])
    running = call("select_running", "default", 10, 10)
    seen.append(sorted([one.id.int, one.attempts, one.is_cancelled] for one in running))
    seen.append([one.host for one in call("select_reports", "default")])
    return seen


def bulk(ids: list[uuid.UUID], queue: str, error: str) -> list[Any]:
    """The bulk actions' statements, on all tasks."""
    chosen = TaskFilter(queue_name=queue, enqueued_before=datetime.now(UTC) + timedelta(hours=1))
    end = datetime.now(UTC).timestamp() + 60.0
    legs = [Leg("ready", Status.READY, *each) for each in call("list_ready", "default", queue)]
    legs += [Leg("scheduled", Status.SCHEDULED), Leg("running", Status.RUNNING), Leg("key", Status.READY)]
    legs += [
        Leg(branch, status)
        for branch in ("finished", "kept")
        for status in (Status.FAILED, Status.SUCCESSFUL)
    ]
    walked: dict[str, list[int]] = {}
    failed = Meant("default", [Status.FAILED])
    for leg in legs:
        step = call("walk_jobs", "default", leg, Place(), end, 100, chosen)
        assert call("walk_jobs", "default", leg, step.last, end, 100, chosen).looked_at == 0
        walked[str(leg)] = [id.int for id in step.ids]
    seen: list[Any] = [
        walked,
        sorted(
            (id.int, left.is_meant, left.lost_key, left.key_holder is None)
            for id, left in call("select_left_jobs", ids, failed).items()
        ),
    ]
    scheduled = Meant("default", [Status.SCHEDULED])
    seen.append(sorted([job.id.int, *job[1:]] for job in call("run_jobs_now", ids, scheduled)))
    waiting = Meant("default", [Status.READY, Status.SCHEDULED])
    cancelled = call("cancel_free_jobs", ids, waiting, error)
    seen.append(sorted([job.id.int, job.queue_name, job.is_running] for job in cancelled))
    an_hour = timedelta(hours=1)
    began, ahead = datetime.now(UTC) - an_hour, datetime.now(UTC) + an_hour
    ended = failed._replace(finished_after=began, finished_before=ahead, finished_by=ahead)
    seen.append(
        sorted([job.id.int, *job[1:3], job.due is None] for job in call("retry_jobs", ids[:-1], ended))
    )
    taken = call("retry_unique_job", ids[-1], ended, lock_timeout=1.0)
    seen.append([taken.retried is None, taken.by_another])
    seen.append(sorted(job.id.int for job in call("delete_jobs", ids[-1:], Meant("default", [*Status]))))
    return seen


def models() -> list[Any]:
    """What the ORM makes of the columns that Django has no fields for."""
    task = Task.objects.first()
    assert task is not None
    value = {"z": [1, -0.0, "['ann']"], "a": None}
    task.args, task.kwargs, task.return_value = [value], value, "it's"
    task.errors, task.worker_ids = [value, "x, y"], [uuid.UUID(int=7)]
    text = serialize("json", [task])
    (loaded,) = deserialize("json", text)
    loaded.save()
    Task.objects.bulk_update([task], ["args", "errors", "worker_ids"])
    found = Task.objects.get(pk=task.pk)
    for lookup in (
        {"args": [value]},
        {"args__0__a": None},
        {"kwargs__z__contains": ["['ann']"]},
        {"return_value": "it's"},
        {"errors__contains": ["x, y"]},
        {"errors__0__z__2": "['ann']"},
        {"worker_ids": [uuid.UUID(int=7)]},
    ):
        assert Task.objects.filter(pk=task.pk, **lookup).exists(), lookup
    assert found.worker_ids == task.worker_ids
    return [found.args, found.kwargs, found.return_value, found.errors]


assert is_psycopg3 is (sys.argv[1] != "psycopg2")
json.dump(main(), sys.stdout)
connection.close()
missing = methods_of_the_store() - called
assert not missing, missing
