"""The tables. aiotasks reads and writes them through ``store/queries/``; these models make
the migrations, and let Django's ORM and admin read."""

from django.db import models
from django.db.models import F, Func, Q
from django.db.models.functions import Greatest
from django.db.models.lookups import LessThanOrEqual

from .fields import ArrayField, JsonArrayField, JsonField

__all__ = ["Limit", "Pause", "Sample", "Schedule", "Task", "Worker"]

# Bytes of a row's backend, queue_name, lane and limit_key together. An entry of an index may have 2,704, and
# those of READY rows hold some 50 more; a queue's name is of 800 at the most (200 characters), a key of 901.
MAX_NAMES = 2560

# Characters of a limit's name, a colon and a key.
MAX_LIMIT_KEY = 301


def octets_of(*columns: str) -> Func:
    """The length of the columns' texts in bytes (NULL: none): every write of a row computes it, so it is made
    of few functions."""
    return Func(
        Func(*columns, function="concat"), function="octet_length", output_field=models.IntegerField()
    )


class Task(models.Model):
    """One task: its definition while it waits, its owner while it runs, its result afterwards."""

    class Status(models.TextChoices):
        """Django's four, and SCHEDULED, which callers see as READY."""

        SCHEDULED = "SCHEDULED"
        READY = "READY"
        RUNNING = "RUNNING"
        SUCCESSFUL = "SUCCESSFUL"
        FAILED = "FAILED"

    id = models.UUIDField(primary_key=True)  # version 7, made by the client: the index stays local
    backend = models.TextField()  # the TASKS alias; several may share a database
    queue_name = models.TextField()
    task_path = models.TextField()
    # Where it runs, from the function's kind at enqueue: each lane has slots of its own, so a
    # backlog of sync tasks never holds up coroutines, nor the reverse.
    lane = models.TextField()
    priority = models.SmallIntegerField()
    status = models.TextField(choices=Status)
    args = JsonField()
    kwargs = JsonField()
    return_value = JsonField(null=True)
    errors = JsonArrayField()  # one per failed execution, oldest first
    worker_ids = ArrayField(models.UUIDField())  # one per execution: their number is the attempts
    crashes = models.SmallIntegerField()
    max_crashes = models.SmallIntegerField(null=True)
    keep_result = models.FloatField(null=True)  # seconds; null: as the backend says
    # A fence, not a reference: new for every claim, so that a worker that was thought dead
    # can't finish what has been claimed again.
    claim_id = models.UUIDField(null=True)
    worker_id = models.UUIDField(null=True)
    enqueued_at = models.DateTimeField()
    run_after = models.DateTimeField(null=True)
    # When it became READY, by the database's clock: the order within a priority.
    ready_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    last_attempted_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)  # its owner is asked to end it
    unknown_since = models.DateTimeField(null=True)  # no worker that claimed it could import it
    # The caller's run_after, once a retry or a snooze has overwritten it; the epoch: it had none.
    asked_run_after = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)  # not started later than this
    failures = models.SmallIntegerField(null=True)  # failed executions that count towards max_attempts
    errors_omitted = models.IntegerField(null=True)  # of ``errors``, between its first 20 and its last 20
    snoozes = models.SmallIntegerField(null=True)
    # The task holds it until ``unique_until``; without that while it is unfinished (``unique_waiting``: while
    # it waits). The next task that takes the key moves it to ``former_key`` here.
    unique_key = models.TextField(null=True)
    unique_until = models.DateTimeField(null=True)
    unique_waiting = models.BooleanField(null=True)
    former_key = models.TextField(null=True)
    # 1: its end is notified; 2: its start and each change of ``metadata``, too; null: nobody waits for it.
    awaited = models.SmallIntegerField(null=True)
    metadata = JsonField(null=True)  # an object; null: empty
    # The limit of the task, ``name`` or ``name:key``. Such a row is in a lane of its own, ``loop+`` or
    # ``thread+``. No text: a longer one might not fit the index, and make all promotions fail.
    limit_key = models.CharField(max_length=MAX_LIMIT_KEY, null=True)
    # Its place in the key's line, by the database's clock; it never becomes earlier.
    limit_place = models.DateTimeField(null=True)
    # The key, from a claim until the task gives up its place; see docs/internals/limits.md.
    limit_held = models.CharField(max_length=MAX_LIMIT_KEY, null=True)
    ordered = models.TextField(null=True)  # 'continue' or 'stop' after a failure; null: in no strict order

    class Meta:
        required_db_vendor = "postgresql"  # `migrate` leaves other databases alone
        indexes = (
            models.Index(
                F("backend"),
                F("queue_name"),
                F("lane"),
                F("priority").desc(),
                F("ready_at"),
                F("id"),
                name="aiotasks_task_ready",
                condition=Q(status="READY"),
            ),
            # A task that is READY after two crashes is claimed by a statement of its own, which would read
            # all of the index above to find it.
            models.Index(
                F("backend"),
                F("lane"),
                F("priority").desc(),
                F("ready_at"),
                F("id"),
                name="aiotasks_task_suspects",
                condition=Q(status="READY", crashes__gte=2),
            ),
            models.Index(
                fields=["backend", "run_after"],
                name="aiotasks_task_scheduled",
                condition=Q(status="SCHEDULED"),
            ),
            models.Index(fields=["worker_id"], name="aiotasks_task_running", condition=Q(status="RUNNING")),
            # By status, because FAILED tasks are kept for longer, and the pruner would read all of them.
            models.Index(
                fields=["backend", "status", "finished_at"],
                name="aiotasks_task_prunable",
                condition=Q(finished_at__isnull=False, keep_result__isnull=True),
            ),
            models.Index(
                F("backend"),
                Func(
                    F("finished_at"),
                    template="date_part('epoch', %(expressions)s AT TIME ZONE 'UTC')",
                    output_field=models.FloatField(),
                )
                + F("keep_result"),
                name="aiotasks_task_kept",
                condition=Q(finished_at__isnull=False, keep_result__isnull=False),
            ),
            # Its predicate has one clause, because PostgreSQL plans predicates in every statement that may
            # write the index: with the statuses in it each enqueue, claim and finish took 6 to 8 µs more.
            models.Index(
                fields=["backend", "status", "expires_at"],
                name="aiotasks_task_expiring",
                condition=Q(expires_at__isnull=False),
            ),
            # The head of each key's line in a queue and lane, and by a loose scan the keys.
            models.Index(
                F("backend"),
                F("queue_name"),
                F("lane"),
                F("limit_key"),
                F("priority").desc(),
                F("limit_place"),
                F("id"),
                name="aiotasks_task_keyed",
                condition=Q(status="READY", limit_key__isnull=False),
            ),
            # What takes up a place of a key.
            models.Index(
                fields=["backend", "limit_held", "limit_place"],
                name="aiotasks_task_held",
                condition=Q(limit_held__isnull=False),
            ),
            # The head of a line in strict order, over all queues and lanes. With the status in its predicate
            # it would cost tasks without a limit more.
            models.Index(
                F("backend"),
                F("limit_key"),
                F("status"),
                F("priority").desc(),
                F("limit_place"),
                F("id"),
                name="aiotasks_task_ordered",
                condition=Q(ordered__isnull=False),
            ),
        )
        constraints = (
            # Every row must fit the indexes of READY rows. One that doesn't, written by hand as SCHEDULED or
            # RUNNING, would make all promotions or rescues fail.
            models.CheckConstraint(
                condition=Q(
                    LessThanOrEqual(octets_of("backend", "queue_name", "lane", "limit_key"), MAX_NAMES)
                ),
                name="aiotasks_task_keys_fit",
            ),
            # A status without the time that belongs to it, written by hand: no statement would claim, promote
            # or prune the row.
            models.CheckConstraint(
                condition=~Q(status="READY") | Q(ready_at__isnull=False),
                name="aiotasks_task_ready_needs_ready_at",
            ),
            models.CheckConstraint(
                condition=~Q(status="SCHEDULED") | Q(run_after__isnull=False),
                name="aiotasks_task_scheduled_needs_run_after",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=["SUCCESSFUL", "FAILED"]) | Q(finished_at__isnull=False),
                name="aiotasks_task_finished_needs_finished_at",
            ),
            # Every key is in it, held or not: with a predicate by status a rescue, a release or a promotion
            # could meet a key that another task has taken meanwhile, and fail for all rows.
            models.UniqueConstraint(
                fields=["backend", "unique_key"],
                name="aiotasks_task_unique",
                condition=Q(unique_key__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.task_path} {self.id}"


class Worker(models.Model):
    """One worker process and its lease. Renewing it renews the lease of all its tasks."""

    id = models.UUIDField(primary_key=True)
    backend = models.TextField()
    host = models.TextField()
    pid = models.IntegerField()
    queues = ArrayField(models.TextField())  # empty: any
    concurrency = models.IntegerField()
    threads = models.IntegerField()
    version = models.TextField()
    started_at = models.DateTimeField()
    lease_expires_at = models.DateTimeField()
    # Whether NOTIFY wakes it; null: it hasn't renewed its lease yet, or is older than the column.
    listening = models.BooleanField(null=True)
    # On which it alone LISTENs; null: it doesn't, or is older than the column.
    channel = models.TextField(null=True)
    # Threads that don't come back from tasks whose time is over; null: as with listening.
    stuck_threads = models.IntegerField(null=True)
    # One for each of its queues; null: no limit.
    queue_limits = ArrayField(models.IntegerField(null=True), null=True)
    claims_keyed = models.BooleanField(null=True)  # it runs tasks with limits; null: of an older release
    # Which its code declares, and behind a space each what keeps it from declaring some; null: none.
    schedules = ArrayField(models.TextField(), null=True)
    # What it says of itself at each renewal: see worker.figures; null: as with listening.
    report = JsonField(null=True)

    class Meta:
        required_db_vendor = "postgresql"

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Pause(models.Model):
    """A queue or a task whose tasks no worker starts for the time being."""

    class Kind(models.TextChoices):
        """What ``name`` names."""

        QUEUE = "queue"
        TASK = "task"

    backend = models.TextField()
    kind = models.TextField(choices=Kind)
    name = models.TextField()  # a queue's name, or the path of a task
    reason = models.TextField()
    paused_at = models.DateTimeField()
    until = models.DateTimeField(null=True)  # null: until somebody resumes it

    class Meta:
        required_db_vendor = "postgresql"
        constraints = (
            models.UniqueConstraint(fields=["backend", "kind", "name"], name="aiotasks_pause_name"),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Sample(models.Model):
    """The figures of a backend's queues at one time. Workers write one a minute, and keep them for a week."""

    backend = models.TextField()
    at = models.DateTimeField()
    # See maintenance.sampler; null: they are being read, or the worker that read them has died.
    figures = JsonField(null=True)

    class Meta:
        required_db_vendor = "postgresql"
        constraints = (models.UniqueConstraint(fields=["backend", "at"], name="aiotasks_sample_at"),)

    def __str__(self) -> str:
        return f"{self.backend} {self.at}"


class Schedule(models.Model):
    """A schedule: when it ticks, and what a worker enqueues then. Workers need not be able to import it."""

    backend = models.TextField()
    name = models.TextField()
    expression = models.TextField()  # five or six fields, a name with @, or "@every SECONDS"
    timezone = models.TextField()
    missed = models.TextField()
    missed_within = models.FloatField(null=True)  # seconds; null: as long as ``missed`` says
    overlap = models.TextField(null=True)  # null: the task's own unique key decides
    jitter = models.FloatField(null=True)  # seconds
    # What the row of its task gets.
    task_path = models.TextField()
    queue_name = models.TextField()
    lane = models.TextField()
    priority = models.SmallIntegerField()
    args = JsonField()
    kwargs = JsonField()
    expires = models.FloatField(null=True)
    metadata = JsonField(null=True)
    unique_key = models.TextField(null=True)
    unique_period = models.FloatField(null=True)
    unique_waiting = models.BooleanField(null=True)
    limit_key = models.TextField(null=True)
    ordered = models.TextField(null=True)
    max_crashes = models.SmallIntegerField(null=True)
    keep_result = models.FloatField(null=True)

    from_code = models.BooleanField()  # else an operator's, which no worker changes or stops
    digest = models.TextField(null=True)  # of what the code has declared
    declared_in = models.TextField(null=True)  # the module of the code that declares it
    paused_at = models.DateTimeField(null=True)
    pause_reason = models.TextField(null=True)
    stopped_at = models.DateTimeField(null=True)  # since when no code that is deployed declares it
    stopped_tick = models.DateTimeField(null=True)  # for which it waited then
    next_at = models.DateTimeField(null=True)  # null: paused, stopped, or it never ticks again
    retry_at = models.DateTimeField(null=True)  # not before, because it has failed
    last_tick = models.DateTimeField(null=True)
    skipped_tick = models.DateTimeField(null=True)  # the last one that was left out
    skipped = models.BigIntegerField()  # how many were
    failures = models.IntegerField()  # in a row
    error = models.TextField(null=True)

    class Meta:
        required_db_vendor = "postgresql"
        constraints = (models.UniqueConstraint(fields=["backend", "name"], name="aiotasks_schedule_name"),)
        indexes = (
            # greatest() ignores NULL.
            models.Index(
                F("backend"),
                Greatest(F("next_at"), F("retry_at")),
                name="aiotasks_schedule_due",
                condition=Q(next_at__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return self.name


class Limit(models.Model):
    """A limit, or one of its keys: what an operator says of it, and what claims have to remember.

    Claims make the rows of keys, and the pruner removes them.
    """

    pk = models.CompositePrimaryKey("backend", "key")
    backend = models.TextField()
    key = models.CharField(max_length=MAX_LIMIT_KEY)  # ``name`` or ``name:key``
    claimed_at = models.DateTimeField(null=True)
    # Starts that weren't paid for at ``claimed_at``: a bucket that leaks one start in ``pace`` seconds.
    level = models.FloatField(db_default=0.0)
    paid_at = models.DateTimeField(null=True)  # when they are, at the pace of then: for the pruner
    # No task that takes up a place of the key has an earlier ``limit_place``.
    busy_since = models.DateTimeField(null=True)
    closed_until = models.DateTimeField(null=True)  # no task of the key starts before
    # The operators' words; null: as the code says.
    paused_at = models.DateTimeField(null=True)
    pause_reason = models.TextField(null=True)
    concurrency = models.IntegerField(null=True)
    rate = models.TextField(null=True)  # as it was written, to be shown
    pace = models.FloatField(null=True)  # the rate as seconds from start to start; 0: none
    burst = models.IntegerField(null=True)
    weight = models.IntegerField(null=True)

    class Meta:
        required_db_vendor = "postgresql"
        constraints = (
            # Written by hand, others would make the claims of all keys fail.
            models.CheckConstraint(
                condition=Q(level__range=(0, 1e9))
                & (Q(pace__isnull=True) | Q(pace__range=(0, 1e9)))
                & (Q(concurrency__isnull=True) | Q(concurrency__gte=0))
                & (Q(burst__isnull=True) | Q(burst__range=(1, 1_000_000)))
                & (Q(weight__isnull=True) | Q(weight__range=(1, 1_000_000))),
                name="aiotasks_limit_values",
            ),
        )

    def __str__(self) -> str:
        return self.key
