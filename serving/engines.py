"""Which inference engine answers, by the settings."""

from tunesmith.errors import InputError
from tunesmith.serving.engine.client import EmbeddedEngine
from tunesmith.serving.engine.protocol import Engine, EngineOptions
from tunesmith.serving.settings import Settings


def build_engine(settings: Settings) -> Engine:
    """Its process is started with the first request. Raises InputError where it cannot be had."""
    if settings.engine == "vllm":
        raise InputError("the engine vllm is not there yet", where="--engine vllm", remedy="use --engine embedded")
    return EmbeddedEngine(EngineOptions(max_places=settings.limits.max_concurrent_generations))
