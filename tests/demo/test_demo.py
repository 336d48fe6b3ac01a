"""`python -m aiotasks.demo`, in processes of its own, on a few modules instead of the whole library."""

import asyncio
import json
import os
import re
import signal
import textwrap
from pathlib import Path

import httpx
import pytest

from aiotasks.codec import dump_error
from aiotasks.demo import client
from aiotasks.demo.errors import DemoError
from aiotasks.demo.findings import exception_of, no_findings
from aiotasks.demo.stdlib import measure, sources
from aiotasks.row_results import error_of
from tests.conftest import ROOT

from .conftest import Start, read_until


def test_examines_every_module(start: Start) -> None:
    process = start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "31/31" in output
    assert re.search(r"longest modules +│ plain29 +│ +29 lines", output)
    assert "62 tasks in" in output
    assert "0 failed" in output


def test_failed_tasks_are_named_and_make_it_fail(start: Start, library: Path) -> None:
    (library / "broken.py").write_text("def\n")
    process = start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "failed measure_source('broken'): SyntaxError: invalid syntax" in output
    assert "64 tasks in" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (SyntaxError("invalid syntax"), "SyntaxError: invalid syntax"),
        (
            httpx.HTTPStatusError("Server error\nFor more: x", request=None, response=None),  # type: ignore[arg-type]
            "httpx.HTTPStatusError: Server error",
        ),
        (KeyError(), "KeyError"),
    ],
)
def test_an_exception_is_shown_by_its_first_line(error: Exception, shown: str) -> None:
    stored = json.loads(dump_error(error, limit=4096, redact=None))
    assert exception_of(error_of(stored)) == shown


def test_serve_keeps_the_site_up_until_a_signal(start: Start) -> None:
    process = start("--serve")
    url = read_until(process, "stays up").split()[-1]
    with httpx.Client(base_url=url, trust_env=False) as client:
        index = client.get("/")
        assert "Examine the modules" in index.text
        assert set(client.cookies) == {"aiotasks_demo_csrftoken"}  # other sites on this host have their own
        policy = index.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert 'href="/modules/plain7/"' in client.get("/modules/").text
        page = client.get("/modules/page/").text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script" not in page
        assert client.get("/modules/missing/").status_code == 404
        assert client.get("/examine/").status_code == 405
        assert client.post("/examine/").status_code == 403  # no CSRF token
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output


@pytest.mark.parametrize("moment", ["Starting PostgreSQL", "Creating the tables", "The site is up"])
@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_is_clean_at_any_moment(start: Start, moment: str, presses: int) -> None:
    process = start()
    read_until(process, moment)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output


def test_a_taken_port_is_said_in_one_sentence(start: Start) -> None:
    first = start("--serve")
    port = str(httpx.URL(read_until(first, "stays up").split()[-1]).port)
    second = start("--port", port)
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 1
    assert output.splitlines()[-1] == f"The site can't use port {port}: Address already in use."
    first.send_signal(signal.SIGINT)
    first.wait(30)


def test_a_missing_extra_is_said_in_one_sentence(start: Start, tmp_path: Path) -> None:
    # An entry of None in sys.modules is what Python itself has for "not to be found".
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None\n")
    process = start(PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert output == 'The demo needs rich: pip install "django-aiotasks[demo]"\n'


@pytest.mark.parametrize("port", ["-1", "65536", "http", ""])
def test_a_port_that_is_none_is_refused(start: Start, port: str) -> None:
    process = start(f"--port={port}")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert output.endswith(f"argument --port: {port!r} isn't a port number from 0 to 65535\n")


class Unfinished:
    """A survey whose tasks end one by one, until `tasks` have."""

    is_finished = False

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.ended = 0

    @property
    def metadata(self) -> dict[str, object]:
        return {"findings": {**no_findings(), "tasks": self.ended}}

    async def arefresh(self) -> None:
        self.ended = min(self.ended + 1, self.tasks)


async def test_it_gives_up_once_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task that ends puts that off."""

    async def start(site: str) -> tuple[Unfinished, Unfinished]:
        return Unfinished(7), Unfinished(4)

    def show(sources: int, pages: int) -> None:
        seen.append((sources, pages))
        # None but the last one is late.
        monkeypatch.setattr(client, "_PATIENCE", 0.0 if seen.count((7, 4)) > 1 else 3600.0)

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(client, "start", start)
    monkeypatch.setattr(client, "_POLL_INTERVAL", 0.001)
    with pytest.raises(DemoError, match="Only 11 tasks have ended, and none"):
        await asyncio.wait_for(client.survey("http://site", show), 60)
    assert seen[3:7] == [(4, 4), (5, 4), (6, 4), (7, 4)]


def test_sources_are_the_library_without_its_tests() -> None:
    modules = sources()
    assert {"json", "json.decoder", "_pydecimal"} <= modules.keys()
    assert not {"sys", "test", "unittest.test", "django"} & modules.keys()
    assert modules["json"].name == "__init__.py"


def test_measure() -> None:
    source = """
        import os
        from sys import path

        class Tree:
            async def grow(self):
                for branch in self:
                    if branch:
                        pass
                    elif os:
                        pass
                    else:
                        if path:
                            pass

            def fall(self): ...
    """
    assert measure(textwrap.dedent(source).encode()) == {
        "lines": 16,
        "functions": 2,
        "classes": 1,
        "imports": 2,
        "nesting": 5,
        "longest_function": "grow",
        "longest_function_lines": 9,
    }


def test_measure_survives_expressions_deeper_than_the_stack() -> None:
    assert measure(b"x = " + b"+".join([b"1"] * 1500))["lines"] == 1
