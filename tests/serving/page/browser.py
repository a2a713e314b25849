"""A real Chromium, driven like a user would; its console log and its requests are recorded."""

import json
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

T = TypeVar("T")
TIMEOUT_S = 90
"""For asynchronous updates, on a loaded machine."""


class Browser:
    """One browser window for all tests of a session."""

    def __init__(self) -> None:
        programs = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
        if None in programs:
            pytest.skip("Chromium and its driver are not installed: tools/debian_packages.sh")
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        for argument in ("--disable-background-networking", "--no-first-run", "--disable-component-update"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(programs[1]))
        self.driver.set_page_load_timeout(60)
        self.resize(1200, 900)
        self.url = ""

    def resize(self, width: int, height: int) -> None:
        """Resize the viewport: a headless window cannot be narrower than 500 pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, name: str) -> None:
        """Select the color scheme, without transitions: colors change at once."""
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def begin(self, url: str) -> None:
        """Start a new session on the server at that URL: logs and session storage are cleared."""
        self.driver.get("about:blank")
        self.url = url
        self.logs()
        self.requests()
        self.driver.get(f"{url}/")
        self.driver.execute_script("sessionStorage.clear()")

    def show(self, view: str) -> None:
        """Open a view, such as `#/jobs`, by its address."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/{view}")
        self.until(lambda: self.text("h1"))

    def until(self, condition: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
        wait = WebDriverWait(self.driver, timeout_s, 0.1, [StaleElementReferenceException])
        return wait.until(lambda _: condition(), f"timeout; the page shows:\n{self.text('body')[-3000:]}")

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.until(lambda: next(iter(self.all(selector)), None), 20)

    def text(self, selector: str) -> str:
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def labelled(self, label: str) -> WebElement:
        """The control with that label, visible or hidden."""
        script = "return arguments[0].textContent"
        matching = self.until(
            lambda: next(
                (one for one in self.all("label") if self.run(script, one).removesuffix(" (required)") == label), None
            ),
            20,
        )
        return self.driver.find_element(By.ID, matching.get_attribute("for") or "")

    def named(self, name: str) -> WebElement:
        """The visible button or link with that accessible name."""
        return self.until(
            lambda: next(
                (one for one in self.all("button, a") if one.is_displayed() and one.accessible_name == name), None
            )
        )

    def choose(self, label: str, value: str) -> None:
        self.until(lambda: self.all(f"#{self.labelled(label).get_attribute('id')} option"))
        Select(self.labelled(label)).select_by_value(value)

    def write(self, label: str, text: str) -> None:
        control = self.labelled(label)
        control.clear()
        control.send_keys(text)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def tab(self) -> WebElement:
        self.press(Keys.TAB)
        return self.driver.switch_to.active_element

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def logs(self) -> list[str]:
        """Console warnings and errors since the last call."""
        entries = [entry for entry in self.driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
        return [f"{entry['level']} {entry['source']}: {entry['message']}" for entry in entries]

    def requests(self) -> list[str]:
        """URLs requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith(("about:", "data:", "blob:"))]

    def close(self) -> None:
        self.driver.quit()
