"""The bar in a real browser, at a real server, with a real worker."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from django.db import connection

from aiotasks.codec import dump_error
from aiotasks.demo.postgres import free_port
from aiotasks.exceptions import TaskCancelled
from aiotasks.rows import AnyResult
from aiotasks.views import sign
from tests.site import default_task_backend
from tests.worker.harness import Process, Start, wait_until

from . import tasks
from .browser import Browser, needs_chromium
from .conftest import SETTINGS, Serve
from .tasks import EVIL

pytestmark = needs_chromium

PHONE = 360

# A clock that a test puts on.
LATER = "window.later = 0; const now = Date.now; Date.now = () => now() + window.later"

type Open = Callable[..., None]


@pytest.fixture
def worker(start_worker: Start) -> Process:
    return start_worker(env=SETTINGS)


@pytest.fixture
def open_page(serve: Serve, browser: Browser, database: str) -> Open:
    """Open the site's page about results."""
    _, client = serve()

    def open_page(*results: AnyResult, **more: str) -> None:
        params: dict[str, Any] = {"id": [result.id for result in results], **more}
        browser.open(httpx.URL(client.base_url).join("/page/").copy_merge_params(params))

    return open_page


def sources(browser: Browser) -> list[int]:
    """The states of the page's EventSources: 0 connecting, 1 open, 2 closed."""
    found: list[int] = browser.run("return window.sources.map((source) => source.readyState)")
    return found


def test_the_bar_moves_to_its_end(worker: Process, browser: Browser, open_page: Open) -> None:
    result = tasks.climb.enqueue(40, 2.0)
    open_page(result, label="Climbing a mountain")
    wait_until(lambda: 0 < browser.value() < 1)
    assert browser.text("status") == "Running"
    wait_until(lambda: "s left" in browser.text("left"))
    browser.screenshot("running")
    shown = re.fullmatch(r"(\d+) %", browser.text("percent"))
    assert shown is not None
    browser.wait_for_status("SUCCESSFUL")
    assert (browser.value(), browser.text("percent"), browser.text("status")) == (1, "100 %", "Done")
    assert (browser.text("message"), browser.text("left")) == ("", "")
    live = browser.find("[role=status][aria-live=polite]").get_attribute("textContent")
    assert live == "Climbing a mountain, Done, 100 %"
    browser.screenshot("done")
    wait_until(lambda: sources(browser) == [2])
    done = [state["progress"]["done"] for state in browser.run("return window.states") if state["progress"]]
    assert done == sorted(done)
    assert len(set(done)) > 5
    assert browser.complaints() == []


def test_the_policy_is_strict(worker: Process, browser: Browser, open_page: Open) -> None:
    """The test above would see a violation."""
    open_page(tasks.climb.enqueue(1))
    browser.wait_for_status("SUCCESSFUL")
    browser.run("document.body.setAttribute('style', 'color: red')")
    wait_until(lambda: [one for one in browser.complaints() if "style-src-attr" in one])


def test_a_failure(worker: Process, browser: Browser, open_page: Open) -> None:
    open_page(tasks.fall.enqueue(0.5))
    browser.wait_for_status("FAILED")
    assert browser.text("status") == "Failed"
    assert browser.value() == pytest.approx(1 / 3, abs=0.01)
    assert "secret" not in browser.driver.page_source
    browser.screenshot("failed")
    wait_until(lambda: sources(browser) == [2])
    assert browser.complaints() == []


BARS = """
const page = arguments[0] ? new DOMParser().parseFromString(arguments[0], "text/html") : document;
return [...page.querySelectorAll(".aiotasks-progress")].map((bar) => {
  const text = (part) => bar.querySelector(`.aiotasks-progress-${part}`).textContent;
  const value = bar.querySelector("progress").getAttribute("value");
  const texts = ["percent", "status", "message"].map(text);
  return [bar.dataset.aiotasksStatus, ...texts, value && Number(value).toFixed(2)];
});
"""


def test_the_server_draws_what_the_script_draws(browser: Browser, open_page: Open) -> None:
    third = {"done": 1, "total": 3, "message": "one of three"}
    failed, cancelled = (
        dump_error(error, limit=4096, redact=None) for error in (LookupError("x"), TaskCancelled("x"))
    )
    states = [
        ("READY", third, [], "Waiting"),
        ("RUNNING", third, [], "Running"),
        ("RUNNING", {"done": 1, "total": None, "message": "no end in sight"}, [], "Running"),
        ("RUNNING", {"done": True, "total": True, "message": 5}, [], "Running"),
        ("FAILED", third, [failed], "Failed"),
        ("FAILED", None, [failed], "Failed"),
        ("FAILED", third, [cancelled], "Cancelled"),
        ("SUCCESSFUL", third, [], "Done"),
        ("SUCCESSFUL", None, [cancelled], "Done"),
    ]
    results = [tasks.climb.enqueue(3) for _ in states]
    open_page(*results)
    wait_until(lambda: len(browser.run("return window.states")) == len(results))
    show = "window.isHidden = arguments[0]; document.dispatchEvent(new Event('visibilitychange'))"
    browser.run(show, True)
    for result, (status, progress, errors, _) in zip(results, states, strict=True):
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE aiotasks_task SET status = %s, errors = %s::json[], metadata = %s::json,"
                " started_at = now(), finished_at = now() WHERE id = %s",
                [status, errors, json.dumps({"progress": progress}), result.id],
            )
    browser.run(show, False)
    wait_until(lambda: [bar[2] for bar in browser.run(BARS)] == [state[-1] for state in states])
    page = httpx.get(browser.driver.current_url, trust_env=False).text
    assert browser.run(BARS) == browser.run(BARS, page)


def test_a_failure_without_progress_stands_still(worker: Process, browser: Browser, open_page: Open) -> None:
    open_page(tasks.trip.enqueue(0.5))
    wait_until(lambda: browser.value() == -1)
    browser.wait_for_status("FAILED")
    assert browser.value() == 0


@pytest.mark.parametrize(
    ("eta", "text"),
    [(58.2, "59 s"), (59.2, "1 min"), (3540, "59 min"), (3541, "1 h 0 min"), (7199, "2 h 0 min")],
)
def test_the_time_that_is_left(eta: float, text: str, browser: Browser, open_page: Open) -> None:
    result = tasks.climb.enqueue(3)
    default_task_backend.save_metadata(result, {"progress": {"done": 29, "total": 100, "eta": eta}})
    with connection.cursor() as cursor:
        cursor.execute("UPDATE aiotasks_task SET status = 'RUNNING', started_at = now()")
    open_page(result)
    wait_until(lambda: browser.text("left") == f"{text} left")
    assert browser.text("percent") == "29 %"


def test_nobody_knows_how_much_there_is(worker: Process, browser: Browser, open_page: Open) -> None:
    open_page(tasks.wander.enqueue(2.0))
    wait_until(lambda: browser.text("message") == "no end in sight")
    assert (browser.value(), browser.text("percent")) == (-1, "")
    browser.screenshot("indeterminate")
    browser.wait_for_status("SUCCESSFUL")
    assert browser.value() == 1


def test_what_people_wrote_is_text(browser: Browser, open_page: Open) -> None:
    result = tasks.climb.enqueue(3)
    open_page(result, label=EVIL)
    default_task_backend.save_metadata(result, {"progress": {"done": 1, "total": 2, "message": EVIL}})
    wait_until(lambda: browser.text("message") == EVIL)
    open_page(result, label=EVIL)  # as the server draws it
    assert browser.text("message") == EVIL
    assert browser.text("label") == EVIL
    assert browser.driver.title == "Progress"
    assert browser.driver.find_elements("css selector", "img") == []
    assert browser.complaints() == []


@pytest.mark.parametrize("missing", ["EventSource", "nothing"])
def test_without_streams_it_polls(
    missing: str, worker: Process, browser: Browser, start: Start, database: str
) -> None:
    """Under WSGI, where a stream is answered with JSON, and in a browser without EventSource."""
    if missing == "EventSource":
        browser.before_each_page("delete window.EventSource")
    process = start("-m", "tests.web.wsgi", str(free_port()), env=SETTINGS)
    url = re.search(r"running on (http://\S+)", process.wait_for("running on"))
    assert url is not None
    result = tasks.climb.enqueue(40, 2.0)
    browser.open(f"{url[1]}/page/?id={result.id}")
    wait_until(lambda: 0 < browser.value() < 1)
    browser.wait_for_status("SUCCESSFUL")
    assert browser.value() == 1
    assert sources(browser) == ([] if missing == "EventSource" else [2])


def test_on_a_phone_and_in_the_dark(worker: Process, browser: Browser, open_page: Open) -> None:
    results = [
        tasks.climb.enqueue(20, 600.0, "a message that is longer than a phone is wide, and goes on and on"),
        tasks.wander.enqueue(600.0),
        tasks.fall.enqueue(),
        tasks.climb.enqueue(1),
    ]
    browser.width(PHONE)
    colours = []
    for scheme in ("light", "dark"):
        browser.media(prefers_color_scheme=scheme)
        open_page(*results, label="AveryLongLabelWithoutAnySpaceThatCouldBeBrokenAcrossTheLinesOfAPhone")
        wait_until(lambda: browser.run("return window.states.length") >= 2)
        assert browser.run("return document.documentElement.scrollWidth") <= PHONE
        colours.append(
            browser.run("return getComputedStyle(document.querySelector('progress')).backgroundColor")
        )
        browser.screenshot(f"phone-{scheme}")
    assert colours[0] != colours[1]
    browser.width(1200, mobile=False)
    browser.screenshot("desktop-dark")


def test_a_light_site_where_the_system_is_dark(browser: Browser, open_page: Open) -> None:
    browser.media(prefers_color_scheme="dark")
    colour = "return getComputedStyle(document.querySelector('.aiotasks-progress-foot')).color"
    open_page(tasks.climb.enqueue(3))
    assert browser.run(colour) == "rgb(168, 179, 192)"
    browser.run("document.querySelector('link[href=\"/style/\"]').remove()")
    assert browser.run(colour) == "rgb(90, 101, 114)"


def test_a_hidden_page_pauses(browser: Browser, open_page: Open) -> None:
    result = tasks.climb.enqueue(3)
    show = "window.isHidden = arguments[0]; document.dispatchEvent(new Event('visibilitychange'))"
    open_page(result)
    wait_until(lambda: sources(browser) == [1])
    browser.run(show, True)
    assert sources(browser) == [2]
    default_task_backend.cancel(result)
    assert sources(browser) == [2]
    assert browser.text("status") == "Waiting"
    browser.run(show, False)
    wait_until(lambda: browser.text("status") == "Cancelled")
    wait_until(lambda: sources(browser) == [2, 2])


def test_bars_share_a_connection_and_may_come_and_go(browser: Browser, open_page: Open) -> None:
    results = [tasks.climb.enqueue(3) for _ in range(35)]
    open_page(*results)
    wait_until(lambda: sources(browser) == [1, 1])
    browser.run(
        "const bar = document.querySelector('.aiotasks-progress'); window.bar = bar.cloneNode(true);"
        "for (const other of document.querySelectorAll('.aiotasks-progress')) other.remove()"
    )
    wait_until(lambda: sources(browser) == [2, 2])
    browser.run("document.body.append(window.bar)")
    wait_until(lambda: sources(browser) == [2, 2, 1])
    default_task_backend.cancel(results[0])
    browser.wait_for_status("CANCELLED")
    wait_until(lambda: sources(browser) == [2, 2, 2])
    assert browser.complaints() == []


def test_a_task_that_is_gone(browser: Browser, open_page: Open) -> None:
    result, other = tasks.climb.enqueue(3), tasks.climb.enqueue(3)
    open_page(result)
    wait_until(lambda: sources(browser) == [1])
    default_task_backend.delete_many([result])
    browser.wait_for_status("UNKNOWN")
    assert browser.text("status") == "No news of this task"
    open_page(other)
    wait_until(lambda: sources(browser) == [1])
    # The token is refused: it follows no more.
    browser.run(
        "const bar = document.querySelector('.aiotasks-progress').cloneNode(true);"
        "bar.dataset.aiotasksToken = 'x';"
        "document.querySelector('.aiotasks-progress').replaceWith(bar)"
    )
    browser.wait_for_status("UNKNOWN")
    wait_until(lambda: sources(browser) == [2, 2])


def test_a_server_that_is_restarted(browser: Browser, serve: Serve, database: str) -> None:
    port = free_port()
    process, client = serve("--port", str(port))
    result = tasks.climb.enqueue(3)
    browser.open(f"{client.base_url}/page/?id={result.id}")
    wait_until(lambda: sources(browser) == [1])
    assert process.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
    default_task_backend.save_metadata(result, {"progress": {"done": 1, "total": 2}})
    serve("--port", str(port))
    wait_until(lambda: browser.value() == 0.5)
    assert sources(browser) == [1]  # the same one has come back


def statuses(browser: Browser) -> list[str]:
    found: list[str] = browser.run(
        "return [...document.querySelectorAll('.aiotasks-progress')].map((bar) => bar.dataset.aiotasksStatus)"
    )
    return found


def test_a_token_that_is_refused_stops_no_other_bar(browser: Browser, open_page: Open) -> None:
    results = [tasks.climb.enqueue(3) for _ in range(5)]
    open_page(*results)
    wait_until(lambda: sources(browser) == [1])
    browser.run(
        "const old = document.querySelectorAll('.aiotasks-progress')[2], bar = old.cloneNode(true);"
        "bar.dataset.aiotasksToken = arguments[0]; old.replaceWith(bar)",
        sign(results[2], max_age=-1),
    )
    wait_until(lambda: statuses(browser) == ["READY", "READY", "UNKNOWN", "READY", "READY"])
    for result in results:
        default_task_backend.cancel(result)
    wait_until(lambda: statuses(browser) == [*["CANCELLED"] * 2, "UNKNOWN", *["CANCELLED"] * 2])


def test_many_bars_leave_room_for_the_page(browser: Browser, open_page: Open) -> None:
    """Neither all its connections, nor addresses that are longer than servers accept."""
    results = default_task_backend.enqueue_many(tasks.climb, [((3,), {})] * 80)
    open_page(*results)
    wait_until(lambda: sources(browser) == [1, 1])
    default_task_backend.cancel_many(results)
    wait_until(lambda: set(statuses(browser)) == {"CANCELLED"})
    assert len(sources(browser)) <= len(results) // 20
    asked: list[str] = browser.run("return performance.getEntriesByType('resource').map((one) => one.name)")
    lengths = [len(url) for url in asked if "/tasks/events/" in url]
    assert len(lengths) > 2
    assert max(lengths) <= 3500


@contextmanager
def answering(port: int, answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[list[str]]:
    """Answer all requests; yields their paths."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_proxy_that_finds_no_server_for_a_while(browser: Browser, serve: Serve, database: str) -> None:
    def bad_gateway(request: BaseHTTPRequestHandler) -> None:
        request.send_error(502)

    port = free_port()
    process, client = serve("--port", str(port))
    result = tasks.climb.enqueue(3)
    browser.open(f"{client.base_url}/page/?id={result.id}")
    wait_until(lambda: sources(browser) == [1])
    assert process.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
    with answering(port, bad_gateway) as paths:
        wait_until(lambda: sources(browser) == [2] and len(paths) > 1)
    serve("--port", str(port))
    wait_until(lambda: sources(browser) == [2, 1])  # a stream again
    default_task_backend.cancel(result)
    browser.wait_for_status("CANCELLED")


def test_a_first_stream_that_is_refused_is_tried_again(browser: Browser, serve: Serve, database: str) -> None:
    """A proxy may refuse it while its server is restarted, and let the poll through a moment later."""
    result = tasks.climb.enqueue(3)
    _, client = serve()
    page = client.get("/page/", params={"id": result.id}).text

    def refuse_streams(request: BaseHTTPRequestHandler) -> None:
        path = httpx.URL(request.path).path
        if path.startswith("/page/"):
            kind, body = "text/html", page
        elif path.startswith("/static/"):
            answer = client.get(path)
            kind, body = answer.headers["Content-Type"], answer.text
        elif "text/event-stream" in request.headers["Accept"]:
            return request.send_error(502)
        else:
            state = {"id": result.id, "status": "READY", "is_finished": False}
            kind, body = "application/json", json.dumps({"tasks": [state]})
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Retry-After", "1")
        request.end_headers()
        request.wfile.write(body.encode())

    browser.before_each_page(LATER)
    with answering(port := free_port(), refuse_streams):
        browser.open(f"http://127.0.0.1:{port}/page/")
        wait_until(lambda: len(browser.run("return window.states")) > 1)  # it polls
        assert sources(browser) == [2]
        browser.run("window.later = 40_000")
        wait_until(lambda: sources(browser) == [2, 2])
        polls = len(browser.run("return window.states"))
        wait_until(lambda: len(browser.run("return window.states")) > polls)
        assert sources(browser) == [2, 2]  # not with each poll
    serve("--port", str(port))
    browser.run("window.later = 600_000")
    wait_until(lambda: sources(browser)[-1] == 1)


def test_a_page_to_log_in_is_no_answer(browser: Browser, serve: Serve, database: str) -> None:
    def redirect(request: BaseHTTPRequestHandler) -> None:
        is_login = request.path.startswith("/login/")
        request.send_response(200 if is_login else 302)
        if not is_login:
            request.send_header("Location", "/login/")
        request.send_header("Content-Type", "text/html")
        request.send_header("Content-Length", "0")
        request.end_headers()

    port = free_port()
    process, client = serve("--port", str(port))
    results = [tasks.climb.enqueue(3) for _ in range(2)]
    browser.open(
        httpx.URL(client.base_url).join("/page/").copy_merge_params({"id": [one.id for one in results]})
    )
    wait_until(lambda: sources(browser) == [1])
    assert process.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
    with answering(port, redirect):
        wait_until(lambda: statuses(browser) == ["UNKNOWN", "UNKNOWN"])


def test_many_bars_are_not_all_read_out(browser: Browser, open_page: Open) -> None:
    browser.before_each_page(LATER)
    results = [tasks.climb.enqueue(3) for _ in range(5)]
    open_page(*results)
    wait_until(lambda: browser.run("return window.states.length") == len(results))
    browser.run("window.later = 11_000")
    for result in results:
        default_task_backend.save_metadata(result, {"progress": {"done": 1, "total": 2}})
    texts = "return [...document.querySelectorAll('.aiotasks-progress-{}')].map((part) => part.textContent)"
    wait_until(lambda: browser.run(texts.format("percent")) == ["50 %"] * 5)
    assert len([text for text in browser.run(texts.format("live")) if text]) == 1
    default_task_backend.cancel_many(results)
    wait_until(lambda: all("Cancelled" in text for text in browser.run(texts.format("live"))))
