"""Takes the pictures of README.md and docs/server-page.md from real runs, with headless Chromium.

    make demo
    python tools/take_pictures.py docs/images                    all of them; one trains a job for minutes
    python tools/take_pictures.py docs/images terminal report    some of them

    demo-terminal     the end of `make demo`; its run must be finished
    demo-report       the run's report.html
    page-job, page-job-running, page-new-job, page-playground    the server's page, light and dark, with a job on the
                      rows of demo/data

Every picture stays below 150 KB. Needs the development environment (`make env`) and Chromium with its driver
(`sh tools/debian_packages.sh`).
"""

import fcntl
import io
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
from openai import OpenAI
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "runs" / "demo"
MAX_BYTES = 150_000
WIDTH = 1120
"""Of pages, in pixels: the tiles of the report fit in one line."""
TERMINAL_COLUMNS = 132
TERMINAL_PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 14px 18px; background: #0c0c0c; color: #d9d9d9; }}
pre {{ margin: 0; font: 13px/1.3 "DejaVu Sans Mono", monospace; white-space: pre-wrap; }}
</style><pre>{code}</pre>"""
JOB_PATIENCE_S = 3600
T = TypeVar("T")


class Camera:
    """A Chromium without a window, whose page is WIDTH pixels wide."""

    def __init__(self, folder: Path):
        programs = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
        if None in programs:
            raise SystemExit("Chromium and its driver are not installed: sh tools/debian_packages.sh")
        options = webdriver.ChromeOptions()
        options.binary_location = str(programs[0])
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
            options.add_argument(argument)
        self.driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
        self.folder = folder

    def open(self, url: str) -> None:
        self.driver.get(url)

    def take(self, name: str, height: int | None = None, schemes: tuple[str, ...] = ("light", "dark")) -> None:
        """height: pixels from the top; None: the whole page. One file per scheme, NAME-SCHEME.png."""
        self.driver.execute_script("document.activeElement?.blur()")
        for scheme in schemes:
            self._show(scheme, height or 800)
            pixels = height or self.driver.execute_script("return document.documentElement.scrollHeight")
            self._show(scheme, pixels)
            target = self.folder / f"{name}-{scheme}.png"
            self.driver.save_screenshot(str(target))
            size = target.stat().st_size
            print(f"{target}: {size:,} bytes")
            if size > MAX_BYTES:
                raise SystemExit(f"{target} is larger than {MAX_BYTES:,} bytes: take less of the page")

    def _show(self, scheme: str, height: int) -> None:
        metrics = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    def until(self, condition: Callable[[], T], timeout_s: float = 120) -> T:
        deadline = time.monotonic() + timeout_s
        while True:
            if value := condition():
                return value
            if time.monotonic() > deadline:
                raise SystemExit(f"the page did not get there within {timeout_s} s:\n{self.text()[-2000:]}")
            time.sleep(0.2)

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def element(self, selector: str) -> Any:
        return self.until(lambda: next(iter(self.driver.find_elements(By.CSS_SELECTOR, selector)), None))

    def write(self, name: str, text: str) -> None:
        control = self.element(f"[name={name}]")
        control.clear()
        control.send_keys(text)

    def choose(self, name: str, value: str) -> None:
        self.element(f"[name={name}] option[value='{value}']")
        Select(self.element(f"[name={name}]")).select_by_value(value)

    def close(self) -> None:
        self.driver.quit()


def take_terminal(camera: Camera) -> None:
    """The demo's run is finished, so the command trains nothing and repeats its results."""
    text = output_of(["sh", "demo/run.sh"])
    end = text.index("$ python demo/compare.py")
    console = Console(record=True, file=io.StringIO(), width=TERMINAL_COLUMNS, force_terminal=True)
    for line in ("$ make demo", "...", *text[end:].split("\n\nNext")[0].splitlines()):
        console.print(Text.from_ansi(line), soft_wrap=True)
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as page:
        page.write(console.export_html(theme=MONOKAI, code_format=TERMINAL_PAGE, inline_styles=True))
        page.flush()
        camera.open(f"file://{page.name}")
        camera.take("demo-terminal", schemes=("dark",))


def output_of(command: list[str]) -> str:
    """What the command writes to a terminal of TERMINAL_COLUMNS columns; its standard error is dropped."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, TERMINAL_COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=terminal, stderr=subprocess.DEVNULL, env=environment)
    os.close(terminal)
    parts = []
    with suppress(OSError):  # Linux reports the end of a terminal as an error
        while part := os.read(reader, 65536):
            parts.append(part)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return b"".join(parts).decode().replace("\r\n", "\n")


def take_report(camera: Camera) -> None:
    camera.open((RUN / "report.html").as_uri())
    camera.take("demo-report", 830, schemes=("light",))


def take_page(camera: Camera) -> None:
    """A job by the API, on the demo's rows and with its hyperparameters; then the playground."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-pictures-") as home, serving(Path(home)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        files = {
            split: client.files.create(file=ROOT / "demo" / "data" / f"{split}.jsonl", purpose="fine-tune").id
            for split in ("train", "held-out")
        }
        hyperparameters: Any = {"n_epochs": 1, "batch_size": 3, "learning_rate_multiplier": 10}
        camera.open(f"{url}/#/new?file={files['train']}")
        camera.choose("validation_file", files["held-out"])
        camera.write("suffix", "news")
        camera.take("page-new-job", 720)
        job = client.fine_tuning.jobs.create(
            model="smollm2",
            training_file=files["train"],
            validation_file=files["held-out"],
            suffix="news",
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        )
        camera.open(f"{url}/#/jobs/{job.id}")
        camera.until(lambda: num_points(camera) > 20, JOB_PATIENCE_S)
        camera.take("page-job-running", 800)
        camera.until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"), JOB_PATIENCE_S)
        camera.until(lambda: camera.element(".head .state").text == "succeeded")
        camera.take("page-job", 1100)
        tuned = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
        camera.open(f"{url}/#/playground?model={tuned}")
        camera.choose("tuned", str(tuned))
        camera.element("summary").click()
        camera.write("system", demo_text("instructions.txt"))
        camera.write("max_tokens", "48")
        camera.write("message", demo_text("story.txt"))
        camera.element("button[type=submit]").click()
        finished = ".response:not([aria-busy])"
        camera.until(lambda: len(camera.driver.find_elements(By.CSS_SELECTOR, finished)) == 2, 300)
        camera.take("page-playground", 820)


def demo_text(name: str) -> str:
    return (ROOT / "demo" / name).read_text(encoding="utf-8").strip()


def num_points(camera: Camera) -> int:
    """Points of the training loss that the page has drawn."""
    drawn = camera.driver.execute_script("return document.querySelector('.plot svg')?.dataset.points ?? '0'")
    return int(drawn.split()[0])


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """The address of a server of its own, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tunesmith.cli.main", "serve", "--home", str(home), "--port", str(port)]
    with open(home / "server.log", "wb") as log:
        base = f"smollm2={ROOT / 'models' / 'smollm2-135m'}"
        process = subprocess.Popen([*command, "--base", base], cwd=ROOT, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((home / "server.log").read_text())
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz").status_code == 200
    return False


PICTURES: dict[str, Callable[[Camera], None]] = {"terminal": take_terminal, "report": take_report, "page": take_page}


def main(arguments: list[str]) -> None:
    if not arguments:
        raise SystemExit(__doc__)
    if unknown := set(arguments[1:]) - set(PICTURES):
        raise SystemExit(f"no such picture: {', '.join(sorted(unknown))}")
    if not (RUN / "report.html").is_file():
        raise SystemExit(f"{RUN} is not finished: run `make demo` first")
    folder = Path(arguments[0]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    camera = Camera(folder)
    try:
        for name in arguments[1:] or PICTURES:
            PICTURES[name](camera)
    finally:
        camera.close()


if __name__ == "__main__":
    main(sys.argv[1:])
