"""Chat templates: the same text as transformers' apply_chat_template, and its trained characters."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from datetime import date, datetime, time
from functools import cached_property
from pathlib import PurePath
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tunesmith.data.tokenization.assistant_spans import (
    NEVER,
    START_MARK,
    STOP_MARK,
    TemplateFailure,
)
from tunesmith.data.tokenization.inserted import Insertions, find_insertions
from tunesmith.data.tokenization.layout import Layout, layout_of
from tunesmith.data.tokenization.probe import make_probe
from tunesmith.data.tokenization.rendering_check import Omission, find_omissions
from tunesmith.data.tokenization.template_variables import TemplateKwargs, require_readable, variables_read
from tunesmith.data.tokenization.turn_ends import closing_tokens, framing_tokens, printed_tokens
from tunesmith.data.tokenization.verbatim import prints_verbatim
from tunesmith.errors import InputError

Message = dict[str, Any]
_LAYOUTS_KEPT, _OMISSIONS_KEPT = 512, 4096
_DETERMINED = (
    "end_of_turn",
    "closing_tokens",
    "_closing_pattern",
    "framing_tokens",
    "printed_tokens",
    "insertions",
    "tokens_inside",
)
"""Properties that are found by rendering, and kept."""


class ChatTemplate:
    """A model's chat template.

    source: Jinja text. bos_token, eos_token: their text in the template; variables: other special tokens by name
    (pad_token, unk_token). special_tokens: texts that the tokenizer never splits; an assistant turn must end with one.
    stop_tokens: those that end an answer in any case. cut_tokens: those at which a text may be split and its pieces
    tokenized separately. tool_source: the model's template for rows with tools, if it has one. today: the date that the
    template prints, if it prints one; None: the current date. Raises InputError if the template is not valid Jinja.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        *,
        variables: Mapping[str, str] | None = None,
        special_tokens: Sequence[str] = (),
        stop_tokens: Sequence[str] = (),
        cut_tokens: Sequence[str] = (),
        tool_source: str | None = None,
        today: date | None = None,
        where: str = "the model's chat template",
    ):
        self.source, self.tool_source, self.name = source, tool_source, _name_of(where)
        named = {"bos_token": bos_token, "eos_token": eos_token, **(variables or {})}
        named = {name: text for name, text in named.items() if text is not None}
        self.special_pattern = one_of(special_tokens)
        self._stop_tokens = [*stop_tokens, *([eos_token] if eos_token else [])]
        self.cut_pattern = one_of(cut_tokens)
        # The same time for all rows, so that a template that prints the date prints the same date in every row.
        self._now = datetime.combine(today or date.today(), time())
        self.today = f"{self._now:%Y-%m-%d}" if "strftime_now" in source + (tool_source or "") else None
        """The date that the template may print; None if it prints none."""
        self._plain = {text: _compile(text, False, self._now, where) for text in (source, tool_source) if text}
        self._marked = {
            text: _compile(text, True, self._now, where)
            for text in (source, tool_source)
            if text and re.search(r"\{%-?\s*generation\s*-?%\}", text)
        }
        self._variables = {**self._plain[source].globals, **named}
        self.values: dict[str, Any] = {}
        """The values that were set for variables (`with_variables`)."""
        self.prints_verbatim = prints_verbatim(self._plain[source].environment, source)
        """Whether the layout of the roles determines the text of a conversation, without rendering it."""
        self._layouts: dict[tuple[str, ...], Layout | None] = {}
        self._omissions: dict[tuple[bool, str], tuple[Omission, ...]] = {}

    @cached_property
    def variables_read(self) -> frozenset[str]:
        """The variables that may be set: those that the template reads, besides the conversation."""
        return variables_read(self._plain[self.source].environment, self._plain, self._variables)

    def with_variables(self, values: TemplateKwargs) -> "ChatTemplate":
        """Return the template with values for its variables in every rendering. Raises InputError (UnreadableVariable)
        for a name that it does not read."""
        require_readable(values, self.variables_read | self.values.keys(), self.name)
        other = copy(self)
        for name in _DETERMINED:
            other.__dict__.pop(name, None)
        other._layouts, other._omissions = {}, {}
        other.values = {**self.values, **values}
        other._variables = {**self._variables, **values}
        return other

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """Render a conversation; with `add_generation_prompt`, up to the start of the assistant's answer.

        messages: in OpenAI's format; `weight` is not passed to the template. An answer at the end follows its prompt:
        if only the generation prompt has an empty think block, it is added. Raises TemplateFailure.
        """
        text = self._rendered(messages, tools, add_generation_prompt)
        is_answered = bool(messages) and messages[-1]["role"] == "assistant" and not add_generation_prompt
        if not is_answered or not self.insertions.prompt_block:
            return text
        return self.insertions.completed(text, self._rendered(messages[:-1], tools, True))

    def _rendered(self, messages: Sequence[Message], tools: list[Any] | None, add_generation_prompt: bool) -> str:
        return self._render(self._plain[self._source_for(tools)], messages, tools, add_generation_prompt)

    def render_marked(self, messages: Sequence[Message], tools: list[Any] | None) -> str | None:
        """Render with marks around the template's {% generation %} blocks; None if it has none."""
        template = self._marked.get(self._source_for(tools))
        return None if template is None else self._render(template, messages, tools, False)

    @cached_property
    def insertions(self) -> Insertions:
        """What the template inserts into answers, which is not trained."""
        return find_insertions(self._unchanged, self._marked_start)

    def _unchanged(self, messages: Sequence[Message], add_generation_prompt: bool) -> str | None:
        try:
            return self._rendered(messages, None, add_generation_prompt)
        except TemplateFailure:
            return None

    def _marked_start(self, messages: Sequence[Message]) -> int | None:
        marked = self.render_marked(messages, None)
        return None if marked is None or START_MARK not in marked else marked.index(START_MARK)

    @cached_property
    def tokens_inside(self) -> frozenset[str]:
        """The special tokens between the prompt and the content of an answer with thinking: none of them ends it."""
        question, content = {"role": "user", "content": "q"}, "\ufdd3a\ufdd4"
        thinking = {"role": "assistant", "content": content, "reasoning_content": "t", "thinking": "t"}
        prompt, text = self._unchanged([question], True), self._unchanged([question, thinking], False)
        if prompt is None or text is None or not text.startswith(prompt):
            return frozenset()
        return frozenset(self.special_pattern.findall(text[len(prompt) :].partition(content)[0]))

    @cached_property
    def end_of_turn(self) -> str | None:
        """The token that ends the last assistant turn; None if there is none."""
        return next(iter(self.closing_tokens), None)

    @cached_property
    def closing_tokens(self) -> tuple[str, ...]:
        """The tokens that end assistant turns, that of the last turn first; empty if there are none."""
        return closing_tokens(self._plainly, self.special_pattern) or ()

    @property
    def closing_pattern(self) -> re.Pattern[str]:
        """Pattern of the tokens with which an assistant turn may end."""
        return self._closing_pattern

    @cached_property
    def _closing_pattern(self) -> re.Pattern[str]:
        known = closing_tokens(self._plainly, self.special_pattern)
        return self.special_pattern if known is None else one_of([*known, *self._stop_tokens])

    @cached_property
    def framing_tokens(self) -> frozenset[str]:
        """The tokens with which messages begin and end, and those that end an answer: none of them can be written in
        an answer."""
        return framing_tokens(self._plainly, self.special_pattern, [*self.closing_tokens, *self._stop_tokens])

    @cached_property
    def printed_tokens(self) -> frozenset[str]:
        """The added tokens that the template prints, or mentions in its source."""
        written = self.special_pattern.findall("\n".join(self._plain))
        return printed_tokens(self._plainly, self.special_pattern) | frozenset(written)

    def _plainly(self, messages: Sequence[Message]) -> str | None:
        try:
            return self.render(messages)
        except TemplateFailure:
            return None

    def layout(self, messages: Sequence[Message]) -> Layout | None:
        """Return the cached layout of a conversation with these roles; None if it cannot be determined, or if messages
        have keys other than role, content and weight."""
        if any("content" not in message or len(message) > 2 + ("weight" in message) for message in messages):
            return None
        roles = tuple([message["role"] for message in messages])
        try:
            return self._layouts[roles]
        except KeyError:
            layout = layout_of(self, roles)
        if len(self._layouts) >= _LAYOUTS_KEPT:
            self._layouts.clear()  # another thread may do so at any time
        self._layouts[roles] = layout
        return layout

    def omissions(
        self, messages: Sequence[Message], tools: list[Any] | None, *, is_prompt: bool = False
    ) -> tuple[Omission, ...]:
        """Return what the template does not show of a row, or of a request for an answer; cached by its shape."""
        key = is_prompt, make_probe(messages, tools).key()
        omissions = self._omissions.get(key)
        if omissions is None:
            omissions = find_omissions(self, messages, tools, is_prompt=is_prompt)
            if len(self._omissions) >= _OMISSIONS_KEPT:
                self._omissions.clear()
            self._omissions[key] = omissions
        return omissions

    def _source_for(self, tools: list[Any] | None) -> str:
        return self.tool_source if tools and self.tool_source else self.source

    def _render(self, template: jinja2.Template, messages: Sequence[Message], tools: Any, prompt: bool) -> str:
        visible = [_visible(message) for message in messages]
        variables = {"messages": visible, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            # As template.render does, but the globals are merged only once.
            context = template.new_context({**self._variables, **variables}, shared=True)
            return "".join(template.root_render_func(context))
        # A template is third-party code: any exception is a failure of this template on this row.
        except Exception as error:
            message = str(error) or type(error).__name__
            raise TemplateFailure(f"the chat template cannot render this row: {message}") from error


def is_supervised(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _visible(message: Message) -> Message:
    """The message as passed to the template, as in transformers: no nulls, and reasoning under all of its names."""
    if len(message) == 2:
        return message if message.get("content") is not None else {k: v for k, v in message.items() if v is not None}
    visible = {key: value for key, value in message.items() if value is not None and key != "weight"}
    reasoning = next((visible[key] for key in ("reasoning_content", "thinking", "reasoning") if key in visible), None)
    return visible if reasoning is None else {"thinking": reasoning, **visible, "reasoning_content": reasoning}


def _name_of(where: str) -> str:
    """How errors name the template: by its file and model, without the directories of this machine."""
    path = PurePath(where)
    if path.name == where:
        return where
    snapshot = path.parent.parent
    model = snapshot.parent.name if snapshot.name == "snapshots" else path.parent.name  # as in the cache of the hub
    return f"the chat template {model.removeprefix('models--').replace('--', '/')}/{path.name}"


def one_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds the leftmost of the texts, and of several at one place the longest."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or NEVER)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: blocks that mark assistant output."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 requires)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclose"), [], [], body).set_lineno(line)

    def _enclose(self, caller: Any) -> str:
        text = caller()
        return f"{START_MARK}{text}{STOP_MARK}" if self.environment.marks_generation else text  # type: ignore[attr-defined]


class _Namespace(Namespace):
    """As in transformers: a namespace that does not give a template access to interpreter internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no parameter named self, which a template may use
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template cannot set {name!r} on a namespace")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _compile(source: str, marks_generation: bool, now: datetime, where: str) -> jinja2.Template:
    """Compile with the same Jinja settings as transformers (utils/chat_template_utils.py)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.extend(marks_generation=marks_generation)
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=now.strftime, namespace=_Namespace, dict=_make_dict)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"the chat template is not valid Jinja: {error.message}",
            where=f"{where}, line {error.lineno}",
            remedy="fix the template, or set model.chat_template to another file",
        ) from error


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> Iterator[None]:
    raise jinja2.TemplateError(message)
