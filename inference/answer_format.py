"""How a model writes thinking and tool calls in its answers, found from its chat template, and how they are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.inserted import TAGS
from tunesmith.data.tokenization.template_variables import TemplateKwargs
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference import rendering
from tunesmith.inference.thinking import Thinking, ThinkingMarks, ThinkingReader
from tunesmith.inference.tool_calls import harmony
from tunesmith.inference.tool_calls.call import Format, Schemas, ToolCall
from tunesmith.inference.tool_calls.formats import HARMONY, HERMES, format_of
from tunesmith.inference.tool_calls.reader import ToolCallReader
from tunesmith.inference.types import Target

_THOUGHT, _ANSWER = "\ufdd3thought\ufdd4", "\ufdd3answer\ufdd4"
_PAIRS = [(f"<{tag}>", f"</{tag}>") for tag in TAGS] + [("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷")]
_OPENING = re.compile("(?:" + "|".join(re.escape(opening) for opening, _ in _PAIRS) + r")\s*\Z")
_TAIL = 32
"""Tokens at the end of a prompt that are searched for the opening of thinking."""


class AnswerReader(Protocol):
    """Splits a streamed answer into thinking, content and tool calls."""

    @property
    def num_calls(self) -> int:
        """Number of calls read so far."""
        ...

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside of thinking."""
        ...

    def add(self, text: str) -> Sequence[str | Thinking | ToolCall]: ...

    def finish(self) -> Sequence[str | Thinking | ToolCall]: ...


class TaggedReader:
    """`AnswerReader` of thinking at the beginning, then content and tool calls; either may be None."""

    def __init__(self, thinking: ThinkingReader | None, calls: ToolCallReader | None):
        self.thinking, self.calls = thinking, calls

    @property
    def num_calls(self) -> int:
        return self.calls.num_calls if self.calls is not None else 0

    @property
    def is_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.is_thinking

    def add(self, text: str) -> list[str | Thinking | ToolCall]:
        parts = [text] if self.thinking is None else self.thinking.add(text)
        return self._with_calls(parts)

    def finish(self) -> list[str | Thinking | ToolCall]:
        parts = self._with_calls(self.thinking.finish() if self.thinking is not None else [])
        return parts if self.calls is None else [*parts, *self.calls.finish()]

    def _with_calls(self, parts: Sequence[str | Thinking]) -> list[str | Thinking | ToolCall]:
        split: list[str | Thinking | ToolCall] = []
        for part in parts:
            if isinstance(part, Thinking) or self.calls is None:
                split += [part] if part else []
            else:
                split += self.calls.add(part)
        return split


@dataclass(frozen=True)
class AnswerFormat:
    """calls: the format of tool calls, HARMONY, or None if it is unknown. thinking: the texts around thinking; None if
    the model has none, or for HARMONY. is_open: whether the prompt ends with the opening of thinking. special: ids of
    the special tokens among the texts of thinking, and of calls."""

    calls: Format | str | None
    thinking: ThinkingMarks | None
    is_open: bool
    special: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def thinks(self) -> bool:
        """Whether answers may have thinking."""
        return self.thinking is not None or self.calls == HARMONY

    def shown_tokens(self, *, reads_calls: bool) -> tuple[int, ...]:
        """Special tokens whose text the reader needs."""
        thinking, calls = self.special
        return tuple(sorted({*thinking, *(calls if reads_calls or self.calls == HARMONY else ())}))

    def reader(self, schemas: Schemas | None, *, structured: bool, constrained: bool) -> AnswerReader:
        """Return a reader of an answer. schemas: of the request's tools; None: calls are content. structured: whether a
        grammar determines the whole answer, so that there is no thinking, and calls are in the format of Hermes.
        constrained: whether a grammar allows calls in this format only."""
        if self.calls == HARMONY and not structured:
            return harmony.HarmonyReader(calls=schemas is not None)
        own = [] if self.calls is None or isinstance(self.calls, str) or structured else [self.calls]
        formats = [*own, HERMES] if constrained or not own else own
        calls = None if schemas is None else ToolCallReader(list(dict.fromkeys(formats)), schemas)
        thinks = self.thinking is not None and not structured
        return TaggedReader(ThinkingReader(self.thinking, is_open=self.is_open) if thinks else None, calls)  # type: ignore[arg-type] (thinks)


def answer_format(target: Target, prompt: Sequence[int], values: TemplateKwargs | None = None) -> AnswerFormat:
    """Return the format of the answers to a prompt. values: the request's values of template variables. Raises
    RequestRejected."""
    tokenizer = rendering.with_variables(rendering.tokenizer_of(rendering.tokenizer_dir(target)), values)
    if tokenizer.template is None:
        return AnswerFormat(None, None, False, ((), ()))
    calls, marks = format_of(tokenizer.template), thinking_marks(tokenizer.template)
    if calls == HARMONY:
        return AnswerFormat(calls, None, False, ((), _special(tokenizer, harmony.MARKERS)))
    texts = () if marks is None else (marks.opening, marks.closing)
    tail = tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False).rstrip()
    is_open = marks is not None and tail.endswith(marks.opening)
    shown = () if calls is None or isinstance(calls, str) else tuple(calls.markers)
    return AnswerFormat(calls, marks, is_open, (_special(tokenizer, texts), _special(tokenizer, shown)))


def _special(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[int, ...]:
    """Special tokens that occur in texts; decoding leaves them out."""
    added = tokenizer.backend.get_added_tokens_decoder()
    return tuple(number for number, token in added.items() if token.special and any(token.content in t for t in texts))


@lru_cache(maxsize=256)
def thinking_marks(template: ChatTemplate) -> ThinkingMarks | None:
    """Return the texts that a template writes around thinking, or those that it mentions; None if there are none."""
    answer: dict[str, Any] = {"role": "assistant", "content": _ANSWER}
    question = {"role": "user", "content": "q"}
    try:
        prompt = template.render([question], add_generation_prompt=True).removesuffix(template.insertions.prompt_block)
        text = template.render([question, {**answer, "reasoning_content": _THOUGHT}])
    except TemplateFailure:
        prompt = text = ""
    before, thought, after = text.partition(_THOUGHT)
    between, answered, _ = after.partition(_ANSWER)
    if thought and answered:
        tag = _OPENING.search(before)
        opening = tag[0].strip() if tag else before[len(prompt) :].strip() if before.startswith(prompt) else ""
        closing = dict(_PAIRS).get(opening, between.strip())
        if opening and closing and closing in between:
            return ThinkingMarks(opening, closing)
    sources = "\n".join(filter(None, (template.source, template.tool_source)))
    return next((ThinkingMarks(*pair) for pair in _PAIRS if pair[1] in sources), None)
