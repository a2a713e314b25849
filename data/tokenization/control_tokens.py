"""Special tokens that rows and requests contain as text.

Control tokens are the tokenizer's special tokens, and the added tokens that the chat template prints: they frame
messages, thoughts and calls. Where a user or a tool wrote one, it is text and is encoded as such: only the template and
the assistant produce control tokens. In an answer, tokens of thoughts and calls keep their meaning, but a token that
begins or ends a message would end the answer, so it is rejected. transformers does the same for questions
(`sanitize_control_tokens`).

To follow a token through the template, its first character is replaced by a stand-in, a character of a script that rows
do not use. So it is no token for the template either, and all positions stay the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.assistant_spans import NEVER, TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate, Message, one_of
from tunesmith.data.tokenization.turn_ends import is_ordinary

_FIRST_STAND_IN = 0x17000  # Tangut: letters, which every filter and every JSON encoder leaves as they are
_MOST_STAND_INS = 6000
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_ANSWER_KEYS = ("role", "content", "weight", *_THOUGHTS)
"""Keys of an assistant message that are not marked; its other keys (calls) are."""
KEY = "split_special_tokens"
"""The key of a recipe's data section, and of a server's settings, that turns this off."""


@dataclass(frozen=True)
class Marked:
    """A conversation with stand-ins. num_tokens: control tokens that its users and tools wrote."""

    messages: list[Message]
    tools: list[Any] | None
    num_tokens: int


class ControlTokens:
    """The control tokens of a tokenizer, in texts of users and tools. named: its special tokens by name. stops: the
    tokens that end an answer, as text."""

    def __init__(self, backend: Backend, named: Mapping[str, str], template: ChatTemplate | None, stops: Sequence[str]):
        added = backend.get_added_tokens_decoder()
        printed = frozenset() if template is None else template.printed_tokens
        tokens = [
            token
            for token in added.values()
            if (token.special or token.content in printed or token.content in named.values())
            and not is_ordinary(token.content)
        ]
        self.template = template
        self.texts = [token.content for token in tokens]
        self.pattern = one_of(self.texts)
        unknown = named.get("unk_token")
        self.ids = {backend.token_to_id(token.content) for token in tokens if token.content != unknown}
        ends = {*stops, *(named[name] for name in ("bos_token", "eos_token") if name in named)}
        self.framing = ends if template is None else ends | template.framing_tokens
        """The tokens that cannot be written in an answer."""
        self._most_spaces = max((len(token.content) - len(token.content.lstrip()) for token in tokens), default=0)
        firsts = sorted({token.content.lstrip()[0] for token in tokens})[:_MOST_STAND_INS]
        self._stand_ins = {first: chr(_FIRST_STAND_IN + number) for number, first in enumerate(firsts)}
        self._originals = {ord(stand_in): first for first, stand_in in self._stand_ins.items()}
        last = chr(_FIRST_STAND_IN + max(len(firsts) - 1, 0))
        self._stand_in = re.compile(f"[{chr(_FIRST_STAND_IN)}-{last}]" if firsts else NEVER)
        folded = [token.content for token in tokens if token.normalized] if backend.normalizer else []
        self._normalize = backend.normalizer.normalize_str if folded else None
        self._folded = one_of(self._normalize(text) for text in folded) if self._normalize else None

    @property
    def folds(self) -> bool:
        """Whether the tokenizer normalizes text before it looks for some of the tokens."""
        return self._folded is not None

    def occurs_in(self, text: str) -> bool:
        return self._may_occur_in(text) and self.pattern.search(text) is not None

    def _may_occur_in(self, text: str) -> bool:
        for first in self._stand_ins:  # noqa: SIM110 (a generator would take three times as long)
            if first in text:
                return True
        return False

    def num_in(self, messages: Sequence[Message], tools: list[Any] | None) -> int:
        """Number of control tokens that users and tools wrote."""
        return sum(self.num_tokens(text) for text in _texts_of_users(messages, tools))

    def marked(self, messages: Sequence[Message], tools: list[Any] | None) -> Marked | None:
        """Mark the control tokens that users and tools wrote; None if there are none. Raises Refusal for characters
        that cannot be distinguished from a control token or from a stand-in."""
        if self._folded is not None:
            for text in _texts_of_users(messages, tools):
                self._refuse_folded(text)
        count = self.num_in(messages, tools)
        if not count:
            return None
        for text in (*_texts_of_users(messages, tools), *_texts_of_answers(messages)):
            self._refuse_stand_ins(text)
        return Marked([self._message(message) for message in messages], self._value(tools), count)

    def marked_text(self, text: str) -> str:
        """Mark the control tokens in a user's text. Raises Refusal as `marked` does."""
        if self._folded is not None:
            self._refuse_folded(text)
        if not self.occurs_in(text):
            return text
        self._refuse_stand_ins(text)
        return self._value(text)

    def num_tokens(self, text: str) -> int:
        return len(self.pattern.findall(text)) if self._may_occur_in(text) else 0

    def unmarked(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """Restore a rendered text; also return the (start, end) characters that are to be encoded as text."""
        plain = text.translate(self._originals)
        spans: list[tuple[int, int]] = []
        for match in self._stand_in.finditer(text):
            place = match.start()
            if spans and place < spans[-1][1]:
                continue
            # The token may begin with whitespace, which has no stand-in. A template may have taken the token apart.
            begins = range(place, max(place - self._most_spaces, 0) - 1, -1)
            token = next((m for n in begins if (m := self.pattern.match(plain, n))), None)
            spans.append((token.start(), token.end()) if token and token.end() > place else (place, place + 1))
        return plain, spans

    def require_kept(
        self,
        marked: Marked,
        text: str,
        messages: Sequence[Message],
        tools: list[Any] | None,
        *,
        add_generation_prompt: bool = False,
    ) -> None:
        """Raise TemplateFailure if the template changes the stand-ins of a conversation that it renders as `text`."""
        template = self.template
        assert template is not None
        if template.prints_verbatim or len(self._stand_in.findall(text)) >= marked.num_tokens:
            return
        if text.translate(self._originals) != template.render(messages, tools, add_generation_prompt):
            raise TemplateFailure("the chat template changes a special token that a message or tool contains as text")

    def refuse_framing(self, messages: Sequence[Message]) -> None:
        """Raise Refusal if an assistant message contains a token that begins or ends messages."""
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                for text in _texts_of_answers([message]):
                    if token := self.framing_token(text):
                        fault = f'the assistant message contains "{token}", which begins or ends a message'
                        where = f"messages[{number}]"
                        raise Refusal("special_token", f"{where}: {fault}", _REMEDY, message=number, fault=fault)

    def framing_token(self, text: str) -> str | None:
        """Return the first token in a text that begins or ends messages; None if there is none."""
        if not self._may_occur_in(text):
            return None
        return next((token for token in self.pattern.findall(text) if token in self.framing), None)

    def _message(self, message: Message) -> Message:
        kept = _ANSWER_KEYS if message["role"] == "assistant" else ("role", "weight")
        return {key: value if key in kept else self._value(value) for key, value in message.items()}

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._value(key): self._value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item) for item in value]
        while isinstance(value, str) and self.pattern.search(value):  # again, for a token inside of another one
            value = self.pattern.sub(self._with_stand_in, value)
        return value

    def _with_stand_in(self, match: re.Match[str]) -> str:
        rest = match[0].lstrip()
        return match[0][: len(match[0]) - len(rest)] + self._stand_ins[rest[0]] + rest[1:]

    def _refuse_stand_ins(self, text: str) -> None:
        if stand_in := self._stand_in.search(text):
            raise Refusal(
                "special_token",
                f"special tokens next to the character U+{ord(stand_in[0]):04X}, which stands for them while rendering",
                "remove the character or the special tokens",
            )

    def _refuse_folded(self, text: str) -> None:
        assert self._folded is not None
        assert self._normalize is not None
        folded = self._folded.findall(self._normalize(text))
        if len(folded) > len(self.pattern.findall(text)):
            raise Refusal(
                "special_token",
                f'characters that the tokenizer normalizes to the special token "{folded[-1]}"',
                "write them in another way, or remove them",
            )


_REMEDY = f"remove it from the answer, or set {KEY}: false (in the recipe's data section, or in a server's settings)"


def _texts_of_users(messages: Sequence[Message], tools: list[Any] | None) -> Iterator[str]:
    for message in messages:
        if len(message) == 2 and message["role"] != "assistant" and isinstance(message.get("content"), str):
            yield message["content"]
        else:
            kept = _ANSWER_KEYS if message["role"] == "assistant" else ("role", "weight")
            for key, value in message.items():
                if key not in kept:
                    yield from _strings(value)
    if tools:
        yield from _strings(tools)


def _texts_of_answers(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if message["role"] == "assistant":
            yield from (message[key] for key in ("content", *_THOUGHTS) if isinstance(message.get(key), str))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
