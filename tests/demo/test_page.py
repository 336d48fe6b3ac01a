"""The demo's page in a real browser, with a real server, worker and database."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from aiotasks.demo.postgres import PostgresServer
from tests.conftest import BIN_DIR
from tests.web.browser import Browser, needs_chromium
from tests.worker.harness import wait_until

from .conftest import Start, read_until

pytestmark = needs_chromium

# The site without the rest of the demo, on another PostgreSQL. Without its lifespan it has no worker.
SITE = """
import os, django, uvicorn
os.environ["DJANGO_SETTINGS_MODULE"] = "aiotasks.demo.settings"
django.setup()
from django.core.management import call_command
from django.db import connection
call_command("migrate", verbosity=0)
connection.close()
uvicorn.run("aiotasks.demo.asgi:application", port=0, lifespan=sys.argv[1])
"""

SCREENS = {
    "desktop": (1280, "light"),
    "phone": (390, "light"),
    "phone, dark": (390, "dark"),
}


@pytest.fixture
def waiting_modules(library: Path) -> None:
    for number in range(5):
        (library / f"waits{number}.py").write_text("# waits\nclass Late: ...\n")


@pytest.fixture
def demo(start: Start) -> Iterator[str]:
    """The page's URL."""
    process = start("--serve")
    yield read_until(process, "stays up").split()[-1]
    process.terminate()
    process.wait(30)


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(bin_dir=BIN_DIR) as server:
        yield server


@pytest.fixture
def site(start: Start, postgres: PostgresServer) -> Callable[[str], str]:
    def site(lifespan: str) -> str:
        process = start(
            lifespan,
            code=SITE,
            AIOTASKS_DEMO_HOST=postgres.host,
            AIOTASKS_DEMO_PORT=str(postgres.port),
            AIOTASKS_DEMO_USER=postgres.user,
        )
        return read_until(process, "Uvicorn running on").split()[4]

    return site


def resize(browser: Browser, screen: str) -> None:
    width, scheme = SCREENS[screen]
    browser.width(width, mobile=width < 500)
    browser.media(prefers_color_scheme=scheme)


def text(browser: Browser, selector: str) -> str:
    """What the element shows; "" without one. In one step, because the page replaces elements."""
    return str(browser.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def button(browser: Browser, label: str) -> WebElement | None:
    found = browser.driver.find_elements(By.XPATH, f"//button[starts-with(normalize-space(), '{label}')]")
    return found[0] if found else None


def focus(browser: Browser, label: str) -> None:
    script = """
        const isMeant = (button) => button.textContent.startsWith(arguments[0]);
        [...document.querySelectorAll("button")].find(isMeant).focus();
    """
    browser.run(script, label)


def press(browser: Browser, label: str) -> None:
    """By the keyboard."""
    wait_until(lambda: button(browser, label))
    focus(browser, label)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)


def share(browser: Browser, name: str) -> float:
    """How much of a survey its bar shows, from 0 to 1."""
    bar = "return document.querySelector(`#${arguments[0]} progress`)?.value ?? 0"
    return float(browser.run(bar, name))


# The colours of each text that is seen, and of what is behind it, as [red, green, blue].
COLOURS = """
const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
const isOpaque = (colour) => colour.length === 3 || colour[3] === 1;
const pageOf = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const colour = rgb(getComputedStyle(each).backgroundColor);
    if (isOpaque(colour)) return colour;
  }
};
return [...document.body.querySelectorAll("*")]
  .filter((each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .filter((each) => each.checkVisibility())
  .map((each) => ({ what: each.outerHTML, text: rgb(getComputedStyle(each).color), page: pageOf(each) }));
"""


def luminance(colour: Sequence[float]) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [part / 255 for part in colour[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.usefixtures("waiting_modules")
def test_start_watch_cancel_and_retry(browser: Browser, demo: str, library: Path, screen: str) -> None:
    resize(browser, screen)
    browser.open(demo)
    assert text(browser, "#survey_sources-bar") == text(browser, "#survey_pages-bar") == "Not started yet."
    assert text(browser, "#throughput") == "No task has ended yet."
    browser.screenshot(f"demo, empty, {screen}")
    press(browser, "Examine the modules")

    # Without another request for the page, because its bars have streams of events.
    wait_until(lambda: share(browser, "survey_pages") == 1)
    wait_until(lambda: 0.8 < share(browser, "survey_sources") < 0.9)  # 31 of 36
    wait_until(lambda: "plain29" in text(browser, "#findings"))
    assert "29 lines" in text(browser, "#findings")
    wait_until(lambda: text(browser, "#start") == "67 of 72 tasks have ended.")
    wait_until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, "#throughput rect"))
    browser.screenshot(f"demo, running, {screen}")

    press(browser, "Cancel the survey of the sources")
    wait_until(lambda: "A retry goes on from here." in text(browser, "#survey_sources-actions"))
    wait_until(lambda: "Cancelled" in text(browser, "#survey_sources-bar"))
    assert share(browser, "survey_sources") < 0.9
    browser.screenshot(f"demo, cancelled, {screen}")
    (library / "gate").touch()
    press(browser, "Retry the survey of the sources")
    wait_until(lambda: share(browser, "survey_sources") == 1)
    # It has gone on, and hasn't begun anew.
    # (No event tells of it if it was through before the page was there again.)
    assert browser.run("return window.states.at(-1)?.metadata.findings.tasks ?? 36") == 36
    wait_until(lambda: "waits0" in text(browser, "#findings"))
    wait_until(lambda: button(browser, "Examine the modules again"))
    assert text(browser, "#survey_sources-actions") == ""
    browser.screenshot(f"demo, finished, {screen}")
    assert browser.complaints() == []


@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_the_screen_and_can_be_read(browser: Browser, demo: str, screen: str) -> None:
    resize(browser, screen)
    browser.open(demo)
    press(browser, "Examine the modules")
    wait_until(lambda: button(browser, "Examine the modules again"))
    width, scheme = SCREENS[screen]
    assert browser.run("return document.documentElement.scrollWidth") <= width
    colours = browser.run(COLOURS)
    assert (luminance(colours[0]["page"]) < 0.1) == (scheme == "dark")
    for each in colours:
        assert contrast(each["text"], each["page"]) >= 4.5, each
    (again,) = browser.driver.find_elements(By.CSS_SELECTOR, "#start button")
    assert again.size["height"] >= 44
    browser.open(f"{demo}modules/plain1/")  # whose path is long
    assert text(browser, "h1") == "plain1"
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


@pytest.mark.usefixtures("waiting_modules")
def test_the_keyboard_keeps_its_place_while_the_page_changes(
    browser: Browser, demo: str, library: Path
) -> None:
    browser.open(demo)
    for _ in range(10):  # the links of the header come first
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        if browser.driver.switch_to.active_element.text == "Examine the modules":
            break
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    wait_until(lambda: text(browser, "#start") == "67 of 72 tasks have ended.")
    focus(browser, "Cancel the survey of the sources")
    (library / "gate").touch()
    wait_until(lambda: button(browser, "Examine the modules again"))
    assert browser.run("return document.activeElement.id") == "survey_sources-title"
    assert browser.complaints() == []


@pytest.mark.usefixtures("waiting_modules")
def test_a_page_follows_what_happens_in_another_one(browser: Browser, demo: str, library: Path) -> None:
    browser.open(demo)
    with httpx.Client(base_url=demo, trust_env=False, follow_redirects=True) as other:

        def post(path: str, status: int = 200) -> None:
            token = other.cookies["aiotasks_demo_csrftoken"]
            assert other.post(path, data={"csrfmiddlewaretoken": token}).status_code == status

        other.get("/")
        post("/examine/")
        wait_until(lambda: text(browser, "#start") == "67 of 72 tasks have ended.")
        survey = browser.run("return document.querySelector('[data-aiotasks-id]').dataset.aiotasksId")
        post(f"/surveys/{survey}/cancel/")
        wait_until(lambda: button(browser, "Retry"))
        (library / "gate").touch()
        post(f"/surveys/{survey}/retry/")
        wait_until(lambda: share(browser, "survey_sources") == 1)
        assert other.post("/examine/").status_code == 403
        post("/surveys/00000000-0000-0000-0000-000000000000/cancel/", status=404)


def test_without_a_worker(browser: Browser, site: Callable[[str], str]) -> None:
    browser.open(site("off"))
    assert text(browser, "#workers").startswith("No worker is running.")
    browser.screenshot("demo, no worker")
    press(browser, "Examine the modules")
    wait_until(lambda: "Waiting" in text(browser, "#survey_pages-bar"))
    press(browser, "Cancel the survey of the pages")
    wait_until(lambda: button(browser, "Retry the survey of the pages"))
    assert browser.complaints() == []


def test_while_the_database_is_away(
    browser: Browser, site: Callable[[str], str], postgres: PostgresServer
) -> None:
    url = site("on")
    browser.open(url)
    assert text(browser, "#stale") == text(browser, "#workers") == ""
    postgres.stop("immediate")
    wait_until(lambda: text(browser, "#stale").startswith("Stale since "))
    wait_until(lambda: text(browser, "#stale").endswith("The database is away. Trying again…"))
    browser.screenshot("demo, stale")
    browser.driver.switch_to.new_window("tab")
    browser.open(url)
    assert text(browser, "h1") == "The database is away"
    browser.screenshot("demo, database away")
    postgres.start()
    wait_until(lambda: button(browser, "Examine the modules"))
    browser.driver.switch_to.window(browser.driver.window_handles[0])
    wait_until(lambda: text(browser, "#stale") == "")
    press(browser, "Examine the modules")
    wait_until(lambda: button(browser, "Examine the modules again"))


@pytest.mark.usefixtures("waiting_modules")
def test_ctrl_c_with_an_open_page(browser: Browser, start: Start) -> None:
    """Neither its stream of events, which goes on for 25 seconds, nor a survey holds it up."""
    demo = start("--serve")
    browser.open(read_until(demo, "stays up").split()[-1])
    press(browser, "Examine the modules")
    wait_until(lambda: text(browser, "#start") == "67 of 72 tasks have ended.")
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=20)
    assert demo.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    wait_until(lambda: text(browser, "#stale").endswith("The site doesn't answer. Trying again…"))
