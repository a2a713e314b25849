"""Select the inference engine from the settings."""

import shutil
import sys
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.serving.engine.client import EmbeddedEngine
from tunesmith.serving.engine.protocol import Engine, EngineOptions
from tunesmith.serving.engine.vllm.engine import VllmEngine
from tunesmith.serving.engine.vllm.server import VllmOptions
from tunesmith.serving.settings import Settings


def build_engine(settings: Settings) -> Engine:
    """Create the engine; its processes start with the first request. Raises InputError if vLLM is not installed."""
    places = settings.limits.max_concurrent_generations
    if settings.engine == "embedded":
        return EmbeddedEngine(EngineOptions(max_places=places, split_special_tokens=settings.split_special_tokens))
    urls = {settings.bases[name]: url.rstrip("/").removesuffix("/v1") for name, url in settings.engine_url.items()}
    command = shutil.which("vllm") or shutil.which("vllm", path=str(Path(sys.executable).parent))
    if command is None and set(settings.bases.values()) - set(urls):
        raise InputError(
            "the command vllm was not found",
            where="--engine vllm",
            remedy="install it (pip install vllm, in this environment or in one on PATH), set engine_url to running "
            "servers, or use --engine embedded",
        )
    splits = settings.split_special_tokens
    options = VllmOptions(
        (command or "vllm",), settings.logs, settings.engine_arguments, places, split_special_tokens=splits
    )
    return VllmEngine(options, urls)
