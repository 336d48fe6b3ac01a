"""``{% aiotasks_progress %}``: the HTML, and docs/howto/live-progress.md."""

import sys
from html.parser import HTMLParser
from types import ModuleType, SimpleNamespace
from typing import Any

import asyncpg
import pytest
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.http import HttpResponse
from django.middleware.csp import ContentSecurityPolicyMiddleware, get_nonce
from django.template import engines
from django.test.client import AsyncClient, RequestFactory
from django.urls import NoReverseMatch

from aiotasks.rows import AnyResult
from aiotasks.web.tokens import read_token
from tests.examples import example
from tests.site import default_task_backend

from . import tasks
from .sse import aread
from .tasks import EVIL


class Elements(HTMLParser):
    """The elements of some HTML: name, attributes, text directly inside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data: str) -> None:
        if self.found and data.strip():
            self.found[-1][2].append(data.strip())

    def names(self) -> list[str]:
        return [name for name, _, _ in self.found]

    def attributes(self, name: str) -> dict[str, str | None]:
        return next(attributes for tag, attributes, _ in self.found if tag == name)

    def text(self, kind: str) -> str:
        return " ".join(
            " ".join(text)
            for _, attributes, text in self.found
            if attributes.get("class") == f"aiotasks-progress-{kind}"
        )


def draw(*results: AnyResult, arguments: str = "", **names: Any) -> Elements:
    text = "{% load aiotasks %}{% for one in results %}{% aiotasks_progress one ARGUMENTS %}{% endfor %}"
    template = engines["django"].from_string(text.replace("ARGUMENTS", arguments))
    return Elements(template.render({"results": results, **names}))


async def with_progress(result: AnyResult, **progress: Any) -> AnyResult:
    await default_task_backend.asave_metadata(result, {"progress": progress})
    await result.arefresh()
    return result


async def test_a_bar(site: str) -> None:
    result = await with_progress(await tasks.climb.aenqueue(3), done=1, total=3, message="step 1")
    drawn = draw(result)
    assert drawn.names() == ["link", "script", *["div"] * 2, *["span"] * 2, "progress", "div", *["span"] * 4]
    assert drawn.attributes("script") == {"src": "/static/aiotasks/progress.js", "defer": None}
    assert drawn.attributes("progress") == {
        "class": "aiotasks-progress-bar",
        "max": "1",
        "value": "0.3333",
        "aria-label": "climb",
    }
    assert drawn.text("label") == "climb"
    assert drawn.text("percent") == "33 %"
    assert drawn.text("status") == "Waiting"
    assert drawn.text("message") == "step 1"
    bar = drawn.attributes("div")
    assert (bar["data-aiotasks-id"], bar["data-aiotasks-url"]) == (result.id, site)
    assert read_token(str(bar["data-aiotasks-token"])) == ("default", [result.id], None)
    response = await AsyncClient().get(
        site, {"token": str(bar["data-aiotasks-token"])}, headers={"Accept": "application/json"}
    )
    assert response.json()["tasks"][0]["id"] == result.id


async def test_percents_are_not_rounded_twice(site: str) -> None:
    result = await tasks.climb.aenqueue(3)
    for done, total in ((29, 100), (57, 100), (115, 200)):
        assert (
            draw(await with_progress(result, done=done, total=total)).text("percent")
            == f"{done * 100 // total} %"
        )


async def test_several_bars_have_one_script(site: str) -> None:
    results = [await tasks.climb.aenqueue(3) for _ in range(3)]
    names = draw(*results).names()
    assert (names.count("script"), names.count("link"), names.count("progress")) == (1, 1, 3)


async def test_arguments_of_the_tag(site: str, settings: Any) -> None:
    result = await tasks.climb.aenqueue(3)
    drawn = draw(result, arguments="label='Up' user=user url='/asked/'", user=SimpleNamespace(pk=7))
    assert drawn.text("label") == "Up"
    bar = drawn.attributes("div")
    assert bar["data-aiotasks-url"] == "/asked/"
    assert read_token(str(bar["data-aiotasks-token"])) == ("default", [result.id], "7")
    await result.acancel()
    await result.arefresh()
    for one in (await tasks.climb.aenqueue(3), result):
        with pytest.raises(TypeError, match="needs a saved user"):
            draw(one, arguments="user=misspelt")
    settings.ROOT_URLCONF = "tests.worker.site"
    with pytest.raises(NoReverseMatch, match="aiotasks"):
        draw(result)


async def test_a_finished_task_is_not_followed(site: str) -> None:
    result = await tasks.climb.aenqueue(3)
    await result.acancel()
    await result.arefresh()
    drawn = draw(result)
    assert "data-aiotasks-token" not in drawn.attributes("div")
    assert drawn.attributes("div")["data-aiotasks-status"] == "CANCELLED"
    assert drawn.text("status") == "Cancelled"


@pytest.mark.parametrize("number", [None, "7", True, [1], -1, 0])
async def test_progress_of_other_code(site: str, conn: asyncpg.Connection, number: Any) -> None:
    result = await with_progress(await tasks.climb.aenqueue(3), done=number, total=number, message=None)
    draw(result)
    await conn.execute(
        "UPDATE aiotasks_task SET metadata = '[1]', status = 'RUNNING' WHERE id = $1", result.id
    )
    await result.arefresh()
    assert "value" not in draw(result).attributes("progress")


@pytest.mark.parametrize("number", ["1e400", "1" + "0" * 400])
async def test_progress_without_measure(site: str, conn: asyncpg.Connection, number: str) -> None:
    result = await tasks.climb.aenqueue(3)
    for total in (number, "1"):
        progress = f'{{"progress": {{"done": {number}, "total": {total}}}}}'
        await conn.execute("UPDATE aiotasks_task SET metadata = $1 WHERE id = $2", progress, result.id)
        await result.arefresh()
        draw(result)


async def test_what_people_wrote_is_no_html(site: str) -> None:
    result = await with_progress(await tasks.climb.aenqueue(3), done=1, total=3, message=EVIL)
    drawn = draw(result, arguments="label=label", label=EVIL)
    assert "img" not in drawn.names()
    assert drawn.text("label") == EVIL
    assert drawn.text("message") == EVIL
    assert drawn.attributes("progress")["aria-label"] == EVIL


async def test_where_a_template_escapes_nothing(site: str) -> None:
    result = await with_progress(await tasks.climb.aenqueue(3), done=1, total=3, message=EVIL)
    text = (
        "{% load aiotasks %}{% autoescape off %}{% aiotasks_progress result label=label %}{% endautoescape %}"
    )
    drawn = Elements(engines["django"].from_string(text).render({"result": result, "label": EVIL}))
    assert "img" not in drawn.names()
    assert drawn.text("label") == EVIL


async def test_a_policy_with_nonces(site: str, settings: Any) -> None:
    request = RequestFactory().get("/")
    ContentSecurityPolicyMiddleware(HttpResponse).process_request(request)
    (options,) = settings.TEMPLATES
    processors = [*options["OPTIONS"]["context_processors"], "django.template.context_processors.csp"]
    settings.TEMPLATES = [{**options, "OPTIONS": {"context_processors": processors}}]
    template = engines["django"].from_string("{% load aiotasks %}{% aiotasks_progress result %}")
    result = await tasks.climb.aenqueue(3)
    drawn = Elements(template.render({"result": result}, request))
    assert drawn.attributes("script")["nonce"] == drawn.attributes("link")["nonce"] == str(get_nonce(request))


async def test_the_page(site: str, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    shop, shops_tasks = ModuleType("shop"), ModuleType("shop.tasks")
    shops_tasks.resize_images = tasks.climb  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", shop)
    monkeypatch.setitem(sys.modules, "shop.tasks", shops_tasks)
    text = '{% load aiotasks %}\n{% aiotasks_progress result label="Resizing your pictures" %}\n'
    with example("howto/live-progress.md") as page:
        await page.run()
        settings.ROOT_URLCONF = page.__name__
        settings.TEMPLATES = [
            {
                **settings.TEMPLATES[0],
                "APP_DIRS": False,
                "OPTIONS": {
                    "loaders": [
                        ("django.template.loaders.locmem.Loader", {"resizing.html": text}),
                        "django.template.loaders.app_directories.Loader",
                    ]
                },
            }
        ]
        await page.run()
        await page.run()
        assert isinstance(page.application, ASGIStaticFilesHandler)
        drawn = Elements((await page.resize(RequestFactory().get("/"))).text)
        assert drawn.text("label") == "Resizing your pictures"
        result, other = await tasks.climb.aenqueue(3), await tasks.climb.aenqueue(3)
        await page.run(result=result, other=other, request=SimpleNamespace(user=SimpleNamespace(pk=1)))
        grants = [read_token(token) for token in (page.token, page.for_one_user, page.for_several)]
        assert grants == [
            ("default", [result.id], None),
            ("default", [result.id], "1"),
            ("default", [result.id, other.id], None),
        ]
        assert read_token(page.for_one_hour) == grants[0]
        await page.run()
        assert page.blocks == []
        settings.ROOT_URLCONF = page.__name__  # clears the cache
        owned = await tasks.carry.aenqueue(owner="ann")
        for id, user in ((result.id, {}), (result.id, {"X-User": "ann"}), (owned.id, {"X-User": "bob"})):
            response = await AsyncClient().get(f"/progress/?id={id}", headers=user)
            assert response.status_code == 403
        allowed: Any = await AsyncClient().get(f"/progress/?id={owned.id}", headers={"X-User": "ann"})
        async for event in aread(allowed.streaming_content):
            if event.data:
                assert event.tasks[0]["status"] == "READY"
                break
