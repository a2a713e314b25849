"""The API process without engine and supervisor, so that tests can kill each separately. Argument: the settings."""

import os
import sys
import threading
import time
from pathlib import Path

import uvicorn

from tunesmith.serving.app import create_app
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store


def exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


threading.Thread(target=exit_with, args=[os.getppid()], daemon=True).start()
settings = Settings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
uvicorn.run(create_app(settings, Store(settings.store_url)), host="127.0.0.1", port=settings.port, log_level="warning")
