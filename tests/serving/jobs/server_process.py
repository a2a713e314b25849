"""The API alone, without engine and supervisor: tests start and kill these one by one. Argument: the settings."""

import sys
from pathlib import Path

import uvicorn

from tunesmith.serving.app import create_app
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store

settings = Settings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
uvicorn.run(create_app(settings, Store(settings.store_url)), host="127.0.0.1", port=settings.port, log_level="warning")
