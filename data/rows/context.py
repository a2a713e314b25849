"""The context of a row's answers that stands next to its messages or texts: system message, tools, media."""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.messages import check_tools, read_text

CONTEXT_KEYS = ("system", "tools", "functions")
"""Keys of a row that belong to the context of its answers."""
MEDIA_KEYS = ("images", "image", "videos", "video", "audios", "audio")
"""Keys of multimodal rows: what they hold cannot be trained."""


def require_text_only(value: Mapping[str, object]) -> None:
    """Raise Refusal if a row has images or the like: the model would be trained on answers to what it never saw."""
    for key in MEDIA_KEYS:
        if value.get(key):
            raise Refusal(
                "unsupported_key", f'the row has "{key}"', f'only text is supported: remove "{key}", or the row'
            )


def require_no_context(value: Mapping[str, object]) -> None:
    """Raise Refusal if a row without messages has a context that only a chat template can render."""
    for key in (*CONTEXT_KEYS, "history"):
        if value.get(key):
            raise Refusal(
                "unsupported_key", f'"{key}" is not supported in a completion', "set `task: chat`, which supports it"
            )


def context_of(value: Mapping[str, object]) -> dict[str, object]:
    """Return the keys of a row that belong to the context of its answers, whatever its format."""
    return {key: value[key] for key in CONTEXT_KEYS if value.get(key)}


def with_system(messages: list[dict[str, Any]], system: object) -> list[dict[str, Any]]:
    """Return the messages after the row's own system message, if it has one."""
    if not system:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise Refusal(
            "unsupported_key",
            f'the row has "system" and begins with a {messages[0]["role"]} message',
            "keep one of them",
        )
    return [{"role": "system", "content": read_text(system, "system")}, *messages]


def tools_of(value: Mapping[str, object]) -> list[Any] | None:
    """Return the row's tools; OpenAI's deprecated `functions` become tools."""
    tools, functions = check_tools(value.get("tools")), check_tools(value.get("functions"), "functions")
    if tools and functions:
        raise Refusal("unsupported_key", 'the row has both "tools" and "functions"', 'keep "tools"')
    return tools or (functions and [{"type": "function", "function": function} for function in functions])
