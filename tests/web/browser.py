"""A headless Chromium, as Debian packages it, driven by Selenium."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.remote.webelement import WebElement

from tests.worker.harness import wait_until

__all__ = ["Browser", "browser", "needs_chromium"]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(
    (CHROMIUM is None or DRIVER is None) and not os.environ.get("CI"),
    reason="chromium and chromedriver aren't installed",
)

# Runs before each page's own scripts. The page's policy holds for those, and not for this.
SPY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
    window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
window.sources = [];
if (window.EventSource) {
    const Original = window.EventSource;
    window.EventSource = class extends Original {
        constructor(...args) { super(...args); window.sources.push(this); }
    };
}
window.isHidden = false;
Object.defineProperty(document, "hidden", { get: () => window.isHidden });
window.states = [];
document.addEventListener("aiotasks:change", (event) => window.states.push(event.detail));
"""


class Browser:
    """One window; what goes wrong in it is collected."""

    def __init__(self, screenshots: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self._screenshots = screenshots
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.before_each_page(SPY)

    def before_each_page(self, script: str) -> None:
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})

    def media(self, **features: str) -> None:
        """Set media features, such as ``prefers_color_scheme``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def width(self, pixels: int, *, mobile: bool = True) -> None:
        metrics = {"width": pixels, "height": 640, "deviceScaleFactor": 2, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, url: Any) -> None:
        self.driver.get(str(url))

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element("css selector", selector)

    def text(self, kind: str) -> str:
        return self.find(f".aiotasks-progress-{kind}").text

    def value(self) -> float:
        """How full the bar is, from 0 to 1; -1: nobody knows."""
        return float(self.run("return document.querySelector('progress').position"))

    def wait(self, condition: Callable[..., Any]) -> Any:
        return wait_until(condition)

    def wait_for_status(self, status: str) -> None:
        bar = "return document.querySelector('[data-aiotasks-status]').dataset.aiotasksStatus"
        wait_until(lambda: self.run(bar) == status)

    def screenshot(self, name: str) -> None:
        self.driver.save_screenshot(str(self._screenshots / f"{name}.png"))

    def complaints(self) -> list[str]:
        """What the page's policy has forbidden, and the console's errors."""
        found: list[str] = self.run("return window.violations")
        entries: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return found + [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    screenshots = Path(os.environ.get("AIOTASKS_TEST_SCREENSHOTS", tmp_path))
    browser = Browser(screenshots)
    yield browser
    browser.driver.quit()
