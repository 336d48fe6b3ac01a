"""Tests of Django's that can't hold for aiotasks, each with its reason. One that passes is an error."""

_DUMMY = "tasks.test_dummy_backend.DummyBackendTestCase."
_IMMEDIATE = "tasks.test_immediate_backend.ImmediateBackendTestCase."
_TASK = "tasks.test_tasks.TaskTestCase."

_IN_A_COROUTINE = "calls the sync method in a coroutine: SynchronousOnlyOperation, as the ORM's"
_IN_MEMORY = "changes the TaskResult in DummyBackend's list; ours are in the database"
_MORE = "says what ImmediateBackend can't do; aiotasks can"

NOT_APPLICABLE = {
    f"{_DUMMY}test_get_missing_result": _IN_A_COROUTINE,
    f"{_TASK}test_get_missing_result": _IN_A_COROUTINE,
    f"{_TASK}test_refresh_result": _IN_A_COROUTINE,
    f"{_DUMMY}test_refresh_result": _IN_MEMORY,
    f"{_DUMMY}test_refresh_result_async": _IN_MEMORY,
    f"{_IMMEDIATE}test_cannot_get_result": _MORE,
    f"{_IMMEDIATE}test_cannot_pass_run_after": _MORE,
    f"{_IMMEDIATE}test_cannot_refresh_result": _MORE,
    f"{_IMMEDIATE}test_throws_keyboard_interrupt": (
        "ends the caller of enqueue(); a worker must outlive whatever a task raises, which is then FAILED"
    ),
}
