"""What a chat template or its generation prompt inserts into an answer, and the model never has to produce.

Two kinds: an empty think block before an answer without thinking (`<think>`, `</think>` and line ends in templates of
Qwen 3), and the header of an answer inside of a {% generation %} block, which the generation prompt ends with. Neither
is trained.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.tokenization.assistant_spans import Turn

TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "seed:think")
"""Names of tags in which templates and models write thinking; also written in square brackets in capitals (Mistral)."""
EMPTY_BLOCK = re.compile(
    r"\s*(?:<(" + "|".join(TAGS) + r")>\s*</\1>|\[THINK\]\s*\[/THINK\]|◁think▷\s*◁/think▷)\s*", re.DOTALL
)
_AT_END = re.compile(EMPTY_BLOCK.pattern.removeprefix(r"\s*") + r"\Z")
_LONGEST = 64
"""Characters before a turn that are searched for an empty block."""
_THOUGHT, _ANSWER = "\ufdd3thought\ufdd4", "\ufdd3answer\ufdd4"
Render = Callable[..., str | None]
"""render(messages, add_generation_prompt) -> text; None if the template cannot."""


@dataclass(frozen=True)
class Insertions:
    """What a template inserts; each may be empty.

    header: with which its {% generation %} blocks begin, the end of its generation prompt. block: the empty think block
    before answers without thinking. prompt_block: an empty think block that only its generation prompt has, not the
    answer after it. opening: with which the block begins.
    """

    header: str = ""
    block: str = ""
    prompt_block: str = ""
    opening: str = ""

    def completed(self, text: str, prompt: str) -> str:
        """Return a conversation that ends with an answer, with the block that the prompt for the answer has. text: as
        the template renders it."""
        head = prompt.removesuffix(self.prompt_block)
        if head == prompt or not text.startswith(head) or text.startswith(self.opening, len(head)):
            return text
        return prompt + text[len(head) :]

    def start(self, text: str, turn: Turn, message: dict[str, Any]) -> int:
        """Return where the trained text of a turn starts: after what is inserted. message: of the turn."""
        _, start, stop = turn
        if self.header and text.startswith(self.header, start):
            start += len(self.header)
        content = message.get("content")
        content = content if isinstance(content, str) else ""
        if EMPTY_BLOCK.match(content) or (self.block and content.startswith(self.block.strip())):
            return start  # the row has it
        if self.block and text.startswith(self.block, start):
            return min(start + len(self.block), stop)
        if match := EMPTY_BLOCK.match(text, start, stop):
            own = content[: len(content) - len(content.lstrip())]
            return match.end() - (len(own) if match[0].endswith(own) else 0)
        return start

    def before(self, text: str, start: int) -> str:
        """Return the empty think block at the end of what precedes trained text; empty if there is none."""
        if match := _AT_END.search(text, max(0, start - _LONGEST), start):
            return match[0]
        return next((b for b in (self.block, self.prompt_block) if b and text.endswith(b, 0, start)), "")

    def are(self, text: str) -> bool:
        """Whether a text between a prompt and the trained part of an answer is inserted."""
        text = text.removeprefix(self.header)
        return text in ("", self.block) or EMPTY_BLOCK.fullmatch(text) is not None


def find_insertions(render: Render, marked_start: Callable[[Sequence[Any]], int | None]) -> Insertions:
    """Find what a template inserts, by rendering short conversations. marked_start: returns where the {% generation %}
    block of the answer of a conversation starts; None if the template has none."""
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": _ANSWER}
    prompt, text = render([question], True), render([question, answer], False)
    if prompt is None or text is None:
        return Insertions()
    begin = marked_start([question, answer])
    header = text[begin : len(prompt)] if begin is not None and begin < len(prompt) and text.startswith(prompt) else ""
    before, after = _around_thinking(render, question, answer)
    start = next((n for n, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(prompt))
    lead, rest = text[start:].partition(_ANSWER)[0], prompt[start:]
    around = before[start:] + after
    return Insertions(
        header,
        lead if _is_empty_form(lead, around) else "",
        rest if not lead and _is_empty_form(rest, around) else "",
        before[start:].strip(),
    )


def _around_thinking(render: Render, question: dict[str, Any], answer: dict[str, Any]) -> tuple[str, str]:
    """The text before thinking, and between it and the content; empty if the template does not show thinking."""
    thinking = render([question, {**answer, "reasoning_content": _THOUGHT, "thinking": _THOUGHT}], False) or ""
    before, thought, after = thinking.partition(_ANSWER)[0].partition(_THOUGHT)
    return (before, after) if thought else ("", "")


def _is_empty_form(text: str, around: str) -> bool:
    """Whether a text is what a template writes around thinking, apart from white space."""
    return bool(text.strip()) and "".join(text.split()) == "".join(around.split())
