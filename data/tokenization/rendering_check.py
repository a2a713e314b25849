"""Find what a chat template does not show of a conversation: system messages, tools, calls, thinking.

A value is shown if replacing it by a unique one of the same kind changes the rendering, and the unique value is at its
place: an assistant's within its turn, others before the turn that they lead to. This depends on the shape of the
conversation only, so each shape is checked once, and trimmed or re-serialized values count as shown.

The template's prompt for an answer is checked as well: if the rendered answer does not begin with it, the model would
be trained on another text than it continues at inference.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.assistant_spans import Renderer, TemplateFailure, continues_prompt, exact_spans
from tunesmith.data.tokenization.probe import Field, Message, Probe, make_probe

PROMPT = "generation prompt"
THINKING = "thinking"
NAME = "name"
Range = tuple[int, int]  # first and last character, exclusive


@dataclass(frozen=True, slots=True)
class Omission:
    """A value that the template does not show. message: its index; None: not part of a message. path: its place.
    kind: for counts. by_design: the thinking of an earlier turn, which the template shows in the last turn only, or the
    name of a participant, which few templates show; both are counted."""

    message: int | None
    role: str
    path: str
    kind: str
    by_design: bool = False

    @property
    def place(self) -> str:
        if self.message is None:
            return self.path
        if self.kind == PROMPT:
            return f"the generation prompt before messages[{self.message}]"
        what = "the thinking in " if self.kind == THINKING and self.path == "content" else ""
        return f"{what}messages[{self.message}].{self.path} ({self.role})"


class OmittedFields(Refusal):
    """Raised for a conversation of which the template does not show everything."""

    def __init__(self, template_name: str, omissions: Sequence[Omission], remedy: str, cause: Refusal | None = None):
        consequence = f"; {cause.reason}" if cause else ""
        reason = f"{template_name} omits {list_of(omissions)}{consequence}"
        super().__init__(code="omitted_field", reason=reason, remedy=remedy)
        self.omissions = omissions


def find_omissions(
    template: Renderer, messages: Sequence[Message], tools: list[Any] | None, *, is_prompt: bool
) -> tuple[Omission, ...]:
    """Return what the template does not show of a row, or of a request for an answer (`is_prompt`). Raises
    TemplateFailure if it cannot render the conversation, even with an empty content where one is missing."""
    try:
        template.render(messages, tools, is_prompt)
    except TemplateFailure:
        messages = [{"content": "", **message} for message in messages]
        template.render(messages, tools, is_prompt)
    check = _Check(_Renders(template), messages, tools, is_prompt)
    return (*check.omissions(), *([] if is_prompt else check.unexpected_prompts()))


class Checked(Protocol):
    """A chat template that caches what it omits."""

    name: str

    def omissions(
        self, messages: Sequence[Message], tools: list[Any] | None, *, is_prompt: bool = False
    ) -> tuple[Omission, ...]: ...


def require_shown(
    template: Checked, messages: Sequence[Message], tools: list[Any] | None, failure: Refusal | None = None
) -> tuple[Omission, ...]:
    """Raise OmittedFields if the template omits a value of a row. Returns what it omits by design. failure: with which
    the row is rejected otherwise, and which the omission may explain."""
    omissions = template.omissions(messages, tools)
    if lost := [omission for omission in omissions if not omission.by_design]:
        remedy = "set model.chat_template to a template that shows it, or remove it from the row; or train such rows "
        raise OmittedFields(template.name, lost, remedy + "without it: data.omitted_fields: keep", failure)
    return omissions


def require_prompt_shown(template: Checked, messages: Sequence[Message], tools: list[Any] | None) -> None:
    """Raise OmittedFields if the template omits a value of a request for an answer. Thinking and names are exempt:
    clients return them with earlier messages."""
    omissions = template.omissions(messages, tools, is_prompt=True)
    if lost := [omission for omission in omissions if omission.kind not in (THINKING, NAME)]:
        raise OmittedFields(template.name, lost, "remove it, or use a model whose chat template shows it")


def list_of(omissions: Sequence[Omission]) -> str:
    """The first omission of each kind, and the number of further ones."""
    first = {omission.kind: omission.place for omission in reversed(omissions)}
    more = len(omissions) - len(first)
    return ", ".join(reversed(first.values())) + (f" and {more:,} more of this kind" if more else "")


class _Renders:
    """A chat template that renders the same messages only once. They are kept, so that no other has the same id."""

    def __init__(self, template: Renderer):
        self.template, self.special_pattern, self.cut_pattern = template, template.special_pattern, template.cut_pattern
        self.render_marked = template.render_marked
        self.texts: dict[tuple[tuple[int, ...], bool], tuple[Sequence[Any], str]] = {}

    @property
    def closing_pattern(self) -> re.Pattern[str]:
        return self.template.closing_pattern

    def render(
        self, messages: Sequence[Any], tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        key = tuple(map(id, [*messages, tools])), add_generation_prompt
        if key not in self.texts:
            text = self.template.render(messages, tools, add_generation_prompt)
            self.texts[key] = [*messages, tools], text
        return self.texts[key][1]


class _Check:
    def __init__(self, template: Renderer, messages: Sequence[Message], tools: list[Any] | None, is_prompt: bool):
        self.template, self.messages, self.tools, self.is_prompt = template, messages, tools, is_prompt
        self.whole = make_probe(messages, tools)
        self.fields = self.whole.fields
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        self.last_answer = answers[-1] if answers else -1

    def unexpected_prompts(self) -> list[Omission]:
        """One omission for each trained answer that does not begin with the generation prompt for it."""
        messages, tools = self.whole.messages, self.whole.tools
        return [
            Omission(number, "assistant", PROMPT, PROMPT)
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
            and message.get("weight", 1) != 0
            and not continues_prompt(self.template, messages, tools, number)
        ]

    def missing(self) -> list[int]:
        """The numbers of the fields that are not shown. A template may show a value depending on others, so that those
        not shown are replaced again, next to the original values of the others."""
        numbers = list(range(len(self.fields)))
        for _ in range(2):
            if numbers:
                numbers = self._missing_of(numbers)
        return numbers

    def omissions(self) -> list[Omission]:
        """One omission for each value that is not shown, or for all parts of a value together."""
        groups: dict[tuple[int | None, str], list[int]] = {}
        for number, value in enumerate(self.fields):
            groups.setdefault((value.message, re.split(r"[.\[]", value.path)[0]), []).append(number)
        missing = set(self.missing())
        omissions = []
        for (message, root), numbers in groups.items():
            if len(numbers) > 1 and missing.issuperset(numbers):
                omissions.append(Omission(message, self._role(message), root, self.fields[numbers[-1]].kind))
            else:
                omissions += [self._omission(number) for number in numbers if number in missing]
        return omissions

    def _omission(self, number: int) -> Omission:
        value = self.fields[number]
        by_design = self._is_by_design(value, number)
        return Omission(value.message, self._role(value.message), value.path, value.kind, by_design)

    def _role(self, message: int | None) -> str:
        return "" if message is None else self.messages[message]["role"]

    def _missing_of(self, numbers: list[int]) -> list[int]:
        missing = self._missing_together(numbers)
        if missing is not None:
            return missing
        # The template rejects one of the unique values, so it reads it: each is tried alone.
        return [number for number in numbers if self._missing_together([number])]

    def _missing_together(self, numbers: list[int]) -> list[int] | None:
        """The fields not shown if only these are replaced; None if the template cannot render them."""
        everything = len(numbers) == len(self.fields)
        probe = self.whole if everything else make_probe(self.messages, self.tools, frozenset(numbers))
        try:
            text, turns = self._rendered(probe)
        except TemplateFailure:
            return None
        return [n for n in numbers if not self._is_shown(probe.fields[n], text, turns)]

    def _rendered(self, probe: Probe) -> tuple[str, dict[int, Range] | None]:
        """The text in lower case, and the assistant's turns; None if they cannot be located."""
        text = self.template.render(probe.messages, probe.tools, self.is_prompt)
        lowered, turns = text.lower(), None
        if not self.is_prompt and len(lowered) == len(text):
            with suppress(TemplateFailure):
                spans = exact_spans(self.template, probe.messages, probe.tools)[1]
                turns = {number: (start, end) for number, start, end in spans}
        return lowered, turns

    def _is_shown(self, value: Field, text: str, turns: dict[int, Range] | None) -> bool:
        start, stop = (0, len(text)) if turns is None else self._range(value, turns, len(text))
        return text.find(value.unique, start, stop) >= 0

    def _range(self, value: Field, turns: dict[int, Range], length: int) -> Range:
        """Where a value must be. Templates may move instructions and tools: they must be before the last answer."""
        if value.message in turns:
            return turns[value.message]
        before_last = turns[self.last_answer][0] if self.last_answer >= 0 else length
        if value.message is None or self.messages[value.message]["role"] in ("system", "developer"):
            return 0, before_last if value.message is None or value.message < self.last_answer else length
        earlier = [end for number, (_, end) in turns.items() if number < value.message]
        later = [start for number, (start, _) in turns.items() if number > value.message]
        return max(earlier, default=0), min(later, default=length)

    def _is_by_design(self, value: Field, number: int) -> bool:
        """Whether this is thinking of an earlier turn that the template shows while that turn is the last one."""
        if value.kind == NAME:
            return True
        if value.kind != THINKING or value.message is None or value.message >= self.last_answer:
            return False
        if value.path == "content":
            return True
        probe = make_probe(self.messages[: value.message + 1], self.tools, frozenset([number]))
        try:
            return value.unique in self.template.render(probe.messages, probe.tools).lower()
        except TemplateFailure:
            return False
