"""Find the trained characters of a rendered conversation, either exactly or not at all.

An assistant turn starts at the end of its prompt: the text of all earlier messages, rendered with the generation
prompt, must be a prefix of the full text. It ends at the end of the text up to and including this message, without the
whitespace after the token that closes the turn (turn_ends.py). Templates that rewrite earlier turns (for example,
remove their thinking) violate the second rule, some also the first. For these, a mark inserted into the message shows
the position, and is accepted only if the text without the mark equals the trained text; the turn ends with the first
closing token after it, which must come before the content of the next message. {% generation %} blocks of the template
take precedence over all of this. Rows whose turns cannot be located in any of these ways are rejected.
"""

from collections.abc import Sequence
from re import Pattern
from typing import Any, Protocol

from tunesmith.data.refusal import Refusal

# Unicode noncharacters are reserved for internal use and do not occur in text; a row that contains them is rejected.
START_MARK, STOP_MARK, PLACE_MARK = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = (START_MARK, STOP_MARK, PLACE_MARK)

NEVER = "(?!)"  # a pattern that never matches

Turn = tuple[int, int, int]  # index of the assistant message, start and end character


class Renderer(Protocol):
    """The required interface of a chat template: rendering, the tokenizer's added tokens, those that end an assistant
    turn, and where texts may be cut."""

    special_pattern: Pattern[str]
    cut_pattern: Pattern[str]

    @property
    def closing_pattern(self) -> Pattern[str]: ...

    def render(
        self, messages: Sequence[Any], tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> str: ...

    def render_marked(self, messages: Sequence[Any], tools: list[Any] | None) -> str | None: ...


class TemplateFailure(Refusal):
    """Raised for a row that the template cannot render, or whose trained part cannot be located exactly."""

    def __init__(self, reason: str, remedy: str = "change the row, or set model.chat_template to another template"):
        super().__init__("template_failure", reason, remedy)


def exact_spans(template: Renderer, messages: Sequence[Any], tools: list[Any] | None) -> tuple[str, list[Turn]]:
    """Return the rendered text and its assistant turns. Raises TemplateFailure if they cannot be located."""
    text = template.render(messages, tools)
    if any(mark in text for mark in MARKS):
        raise TemplateFailure("the row contains Unicode noncharacters (U+FDD0 to U+FDD2)", "remove them")
    numbers = assistant_messages(messages)
    turns = marked_turns(template, messages, tools, text, numbers)
    if turns is None:
        turns = []
        for i in numbers:
            turns.append(locate_turn(template, messages, tools, i, text, turns[-1][2] if turns else 0))
    require_order(turns)
    return text, turns


def locate_turn(
    template: Renderer, messages: Sequence[Any], tools: list[Any] | None, number: int, text: str, previous: int
) -> Turn:
    """Return the turn of an assistant message by rendering the conversation with and without it, in time proportional
    to its length. previous: the end of the assistant turn before. Raises TemplateFailure."""
    start = _start(template, messages, tools, number, text, previous)
    return number, start, _end(template, messages, tools, number, text, start)


def assistant_messages(messages: Sequence[Any]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]


def require_order(turns: Sequence[Turn]) -> None:
    """Raise TemplateFailure if turns are empty, overlap or are not in order."""
    previous = 0
    for _, start, end in turns:
        if not previous <= start < end:
            raise TemplateFailure("the chat template omits the content of an assistant message, or reorders the turns")
        previous = end


def continues_prompt(template: Renderer, messages: Sequence[Any], tools: list[Any] | None, number: int) -> bool:
    """Whether an assistant message, rendered as the last one, begins with the generation prompt for it."""
    prompt = _try(template, messages[:number], tools, True)
    answered = _try(template, messages[: number + 1], tools, False)
    return prompt is None or answered is None or answered.startswith(prompt)


def marked_turns(
    template: Renderer, messages: Sequence[Any], tools: list[Any] | None, text: str, numbers: list[int]
) -> list[Turn] | None:
    """Return the turns marked by {% generation %} blocks of the template; None if it has none. numbers: the assistant
    messages. Raises TemplateFailure."""
    marked = template.render_marked(messages, tools)
    if marked is None:
        return None
    if marked.replace(START_MARK, "").replace(STOP_MARK, "") != text:
        raise TemplateFailure("the chat template changes text inside its {% generation %} blocks after rendering it")
    spans, before = [], 0
    for number, part in enumerate(marked.split(START_MARK)):
        if number:
            inside, _, outside = part.partition(STOP_MARK)
            spans.append((before, before + len(inside)))
            part = inside + outside
        before += len(part)
    if len(spans) != len(numbers):
        raise TemplateFailure(
            f"the chat template marks {len(spans)} {{% generation %}} blocks for {len(numbers)} assistant messages"
        )
    return [
        (i, start, _with_closing_token(template, text, end)) for i, (start, end) in zip(numbers, spans, strict=True)
    ]


def _with_closing_token(template: Renderer, text: str, end: int) -> int:
    """Include the token that closes a turn if the {% generation %} block ends before it."""
    kept = len(text[:end].rstrip())
    if _closes(template, text, kept):
        return kept
    match = template.closing_pattern.match(text, end)
    if match is None:
        raise _unclosed()
    return match.end()


def _start(
    template: Renderer, messages: Sequence[Any], tools: list[Any] | None, number: int, text: str, previous: int
) -> int:
    """previous: the end of the assistant turn before."""
    prompt = _try(template, messages[:number], tools, True)
    if prompt is not None and text.startswith(prompt):
        return len(prompt)
    variants = [_with_content(messages, number, PLACE_MARK)]
    if messages[number].get("tool_calls"):
        variants.append(_with_marked_call(messages, number))
    for variant in variants:
        marked = _try(template, variant, tools, False) or ""
        place = marked.find(PLACE_MARK)
        if place < 0 or text[:place] != marked[:place]:
            continue
        start = _start_before(template, variant[: number + 1], tools, text[previous:place], prompt or "")
        if start is not None:
            return previous + start
        if variant is variants[0]:
            return place
    raise rewritten(number)


def _start_before(
    template: Renderer, messages: Sequence[Any], tools: list[Any] | None, text: str, prompt: str
) -> int | None:
    """Return where a turn starts in the text before its first value, from how it starts if it is the last one: there,
    it continues the prompt. messages: the last one has a mark. None: it starts differently."""
    alone = _try(template, messages, tools, False) or ""
    lead = alone[len(prompt) : alone.find(PLACE_MARK)] if prompt and alone.startswith(prompt) else None
    if lead is not None and text.endswith(lead):
        return len(text) - len(lead)
    # The template adds something to the last turn only, such as empty thinking.
    before = _try(template, messages[:-1], tools, False)
    header = prompt[len(before) :] if before and prompt.startswith(before) else ""
    start = text.rfind(header) if header else -1
    return start + len(header) if start >= 0 else None


def _end(
    template: Renderer, messages: Sequence[Any], tools: list[Any] | None, number: int, text: str, start: int
) -> int:
    so_far = _try(template, messages[: number + 1], tools, False)
    is_prefix = so_far is not None and text.startswith(so_far)
    if is_prefix and _closes(template, text, end := len(so_far.rstrip())):  # type: ignore[union-attr] (is_prefix)
        return end
    place = _after_content(template, messages, tools, number, text)
    if place is not None:
        gap = len(text[place:]) - len(text[place:].lstrip())
        if match := template.closing_pattern.match(text, place + gap):
            return match.end()
    if not _contains(template.closing_pattern, messages[number]):
        match = template.closing_pattern.search(text, start if place is None else place)
        if match and match.end() <= _next_content(template, messages, tools, number, text):
            return match.end()
    raise _unclosed() if is_prefix or place is not None else rewritten(number)


def _after_content(
    template: Renderer, messages: Sequence[Any], tools: list[Any] | None, number: int, text: str
) -> int | None:
    """The position after the content of a message; None if it cannot be located."""
    content = messages[number].get("content")
    for variant in (content, content.rstrip()) if isinstance(content, str) and content else ():
        marked = _try(template, _with_content(messages, number, variant + PLACE_MARK), tools, False)
        if marked is not None and marked.count(PLACE_MARK) == 1 and marked.replace(PLACE_MARK, "") == text:
            return marked.index(PLACE_MARK)
    return None


def _next_content(template: Renderer, messages: Sequence[Any], tools: list[Any] | None, number: int, text: str) -> int:
    """The position before the content of the next message, which is after the end of this turn; -1 if it cannot be
    located."""
    if number + 1 == len(messages):
        return len(text)
    content = messages[number + 1].get("content")
    for variant in (content, content.lstrip()) if isinstance(content, str) else ():
        marked = _try(template, _with_content(messages, number + 1, PLACE_MARK + variant), tools, False)
        if marked is not None and marked.count(PLACE_MARK) == 1 and marked.replace(PLACE_MARK, "") == text:
            return marked.index(PLACE_MARK)
    return -1


def _contains(pattern: Pattern[str], value: Any) -> bool:
    """Whether a token occurs in the texts of a message."""
    if isinstance(value, dict):
        return any(_contains(pattern, item) for item in value.values())
    if isinstance(value, list):
        return any(_contains(pattern, item) for item in value)
    return isinstance(value, str) and pattern.search(value) is not None


def _closes(template: Renderer, text: str, end: int) -> bool:
    """Whether a token that closes a turn ends at `end`; always true if no added tokens are known."""
    if template.special_pattern.pattern == NEVER:
        return True
    window = max(0, end - 256)
    return any(match.end() == end for match in template.closing_pattern.finditer(text, window, end))


def _with_content(messages: Sequence[Any], number: int, content: str) -> list[Any]:
    return [{**message, "content": content} if i == number else message for i, message in enumerate(messages)]


def _with_marked_call(messages: Sequence[Any], number: int) -> list[Any]:
    """Put a mark before the name of the first call of a message."""
    first, *others = messages[number].get("tool_calls") or [{}]
    function = first.get("function", first)
    function = {**function, "name": PLACE_MARK + function.get("name", "")}
    calls = [{**first, "function": function} if "function" in first else function, *others]
    return [{**message, "tool_calls": calls} if i == number else message for i, message in enumerate(messages)]


def _try(template: Renderer, messages: Sequence[Any], tools: list[Any] | None, prompt: bool) -> str | None:
    try:
        return template.render(messages, tools, prompt)
    except TemplateFailure:
        return None


def rewritten(number: int) -> TemplateFailure:
    return TemplateFailure(
        f"the chat template rewrites earlier turns, so the content of messages[{number}] cannot be located",
        "enclose assistant messages in {% generation %} blocks in a copy of the template, "
        "and set model.chat_template to it",
    )


def _unclosed() -> Exception:
    return TemplateFailure(
        "the chat template ends the assistant turn without a special token: the model would not learn to stop",
        "set model.chat_template to a template that ends assistant messages with the model's end-of-turn token",
    )
