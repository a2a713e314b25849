"""Rows to tokens: what a model reads of a row, and which of its tokens are trained.

The whole text is tokenised as the model's own tokenizer does it; the characters of each token say which are trained.
Where a token would hold the end of a prompt and the assistant's first words, the text is cut at all turns of the
assistant instead, trained or not: that is what the model meets when it is used (`prompt_tokens`), and no token of the
prompt is trained. What many rows begin with (a system prompt)
is tokenised once and cut off at a special token, which changes no token.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from threading import Lock
from typing import Any

from tokenizers import Encoding

from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import DROPPED, KEPT, MASKED, TRUNCATED, Document, Prepared, Ranges, rejected
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import Conversation, Text, read_row
from tunesmith.data.tokenization.assistant_spans import TemplateFailure, Turn, exact_spans
from tunesmith.data.tokenization.chat_template import ChatTemplate, Message, is_trained
from tunesmith.data.tokenization.pretoken_cache import PretokenCache
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

_OPENINGS_KEPT = 1024


@dataclass(slots=True)
class _Job:
    """A row on its way: its text, the characters where it may be cut (the assistant's turns), and which of those are
    trained. opening: characters that many rows begin with. cut: always tokenise the turns by themselves."""

    key: bytes
    text: str
    spans: Sequence[tuple[int, int]]
    is_trained: Sequence[bool]
    masked: bool = False
    opening: int = 0
    cut: bool = False
    tokens: list[int] = field(default_factory=list)
    trained: Ranges = field(default_factory=list)


CHECKED = 64
"""An encoder's first rows are tokenised both ways: where the pre-token cache gives other tokens, it is not used."""


class LanguageModelEncoder:
    """Turns rows of one task into documents. Pure: the same rows give the same tokens, in any batches. Threads may
    share an encoder.

    Raises InputError where the tokenizer cannot serve the task.
    """

    def __init__(self, tokenizer: Tokenizer, spec: EncodingSpec):
        if spec.facts.templated and tokenizer.template is None:
            raise InputError(
                "the model has no chat template",
                where=f"task: {spec.task}",
                remedy="name a template as model.chat_template, or use a model that was tuned for chat",
            )
        if not spec.facts.templated and tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no eos token: the model would not learn to stop",
                where=f"task: {spec.task}",
                remedy="set eos_token in the model's tokenizer_config.json",
            )
        spec.require_splittable()
        self.tokenizer, self.spec = tokenizer, spec
        self._openings: dict[str, list[int]] = {}
        self._unchecked = CHECKED
        self._checking = Lock()

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """One result for each value, in order. A value is what a line holds, or the Refusal in its place."""
        jobs = [self._job(value) for value in values]
        good = [job for job in jobs if isinstance(job, _Job)]
        self._encode_whole([job for job in good if not job.cut])
        self._encode_cut([job for job in good if job.cut])
        return [rejected(job) if isinstance(job, Refusal) else self._finished(job) for job in jobs]

    def _job(self, value: Any) -> _Job | Refusal:
        if isinstance(value, Refusal):
            return value
        try:
            row = read_row(value, self.spec.task)
            if isinstance(row, Conversation):
                job = self._conversation(row)
            elif isinstance(row, Text):
                job = _Job(row.key(), row.text, [(0, len(row.text))], [True])
            else:
                text = row.prompt + row.completion
                job = _Job(row.key(), text, [(len(row.prompt), len(text))], [True], cut=self.tokenizer.joins_pieces)
            self._check_writable(job.text)
            return job
        except Refusal as refusal:
            return refusal

    def _conversation(self, row: Conversation) -> _Job:
        template: ChatTemplate = self.tokenizer.template  # type: ignore[assignment] (checked at the start)
        messages = row.messages
        masked = any("weight" in message and not message["weight"] for message in messages)
        text, turns, opening = _rendered(template, messages, row.tools)
        trained = [is_trained(messages[number]) for number, _, _ in turns]
        return _Job(row.key(), text, [turn[1:] for turn in turns], trained, masked, opening)

    def _check_writable(self, text: str) -> None:
        """Raises Refusal where the tokenizer would drop a character: the tokens would not be the text."""
        missing = self.tokenizer.unwritable_bytes
        if missing and len(data := text.encode("utf-8")) != len(data.translate(None, missing)):
            lost = next(c for c in text if any(byte in missing for byte in c.encode("utf-8")))
            raise Refusal(
                "unknown_character",
                f"the model's tokenizer has no token for the character U+{ord(lost):04X}: it would vanish",
                "remove the character; it is most often left over from another program",
            )

    def _encode_whole(self, jobs: list[_Job]) -> None:
        openings = [self._opening_ids(job.text[: job.opening]) if job.opening else None for job in jobs]
        for job, ids in zip(jobs, openings, strict=True):
            job.opening = 0 if ids is None else job.opening
        crossing = []
        for job, opening, (ids, ranges) in zip(jobs, openings, self._encoded(jobs), strict=True):
            if ranges is None:
                crossing.append(job)
            elif opening:
                job.tokens = opening + ids
                job.trained = [(start + len(opening), stop + len(opening)) for start, stop in ranges]
            else:
                job.tokens, job.trained = ids, ranges
        self._encode_cut(crossing)

    def _encoded(self, jobs: list[_Job]) -> list[tuple[list[int], Ranges | None]]:
        """The tokens behind each job's opening and which of them are trained; None where the text has to be cut."""
        if self._unchecked:
            self._check_pretokens(jobs)
        pretokens = self.tokenizer.pretokens
        cached = [None if pretokens is None else _from_pretokens(pretokens, job) for job in jobs]
        rest = iter(self._from_tokenizer([job for job, tokens in zip(jobs, cached, strict=True) if tokens is None]))
        return [next(rest) if tokens is None else tokens for tokens in cached]

    def _check_pretokens(self, jobs: list[_Job]) -> None:
        """Drop the pre-token cache where one of the first rows has other tokens without it. Other threads wait: none
        goes on with a cache that has not stood this."""
        with self._checking:
            pretokens = self.tokenizer.pretokens
            if pretokens is None or not self._unchecked:
                return
            cached = ((job, _from_pretokens(pretokens, job)) for job in jobs)
            checked = list(islice(((job, tokens) for job, tokens in cached if tokens is not None), self._unchecked))
            if [tokens for _, tokens in checked] != self._from_tokenizer([job for job, _ in checked]):
                self.tokenizer.drop_pretokens()
            self._unchecked -= len(checked)

    def _from_tokenizer(self, jobs: list[_Job]) -> list[tuple[list[int], Ranges | None]]:
        encodings = self.tokenizer.encodings([job.text[job.opening :] for job in jobs])
        joins = self.tokenizer.joins_pieces
        return [
            (encoding.ids, _token_ranges(encoding, len(encoding.ids), job, joins))
            for job, encoding in zip(jobs, encodings, strict=True)
        ]

    def _opening_ids(self, text: str) -> list[int] | None:
        """The tokens of an opening, kept for the next row; None where there are too many different ones to keep."""
        ids = self._openings.get(text)
        if ids is None and len(self._openings) < _OPENINGS_KEPT:
            ids = self._openings[text] = self.tokenizer.encode(text)
        return ids

    def _encode_cut(self, jobs: list[_Job]) -> None:
        """Tokenise texts in pieces, cut where training starts and stops."""
        cuts = [[0, *(place for span in job.spans for place in span), len(job.text)] for job in jobs]
        pieces = [job.text[a:b] for job, places in zip(jobs, cuts, strict=True) for a, b in pairwise(places)]
        encoded = iter(self.tokenizer.encode_batch(pieces))
        for job, places in zip(jobs, cuts, strict=True):
            for number in range(len(places) - 1):
                start = len(job.tokens)
                job.tokens += next(encoded)
                if number % 2 and job.is_trained[number // 2]:
                    job.trained.append((start, len(job.tokens)))

    def _finished(self, job: _Job) -> Prepared:
        document = Document(job.tokens, job.trained)
        if not self.spec.facts.templated:
            document = _with_ends(document, self.tokenizer)
        if not document.supervised_tokens():
            return rejected(
                Refusal("not_supervised", "no supervised token: nothing of the row is trained", "remove the row"),
                job.key,
            )
        if len(document.tokens) > self.spec.max_seq_len:
            return self._too_long(document, job)
        return Prepared(MASKED if job.masked else KEPT, [document], job.key)

    def _too_long(self, document: Document, job: _Job) -> Prepared:
        size, limit = len(document.tokens), self.spec.max_seq_len
        reason = f"too long: {size:,} tokens, max_seq_len is {limit:,}"
        if self.spec.too_long == "error":
            choices = "truncate or drop" if self.spec.facts.has_prompt else "truncate, drop or split"
            remedy = f"raise data.max_seq_len, shorten the row, or set data.too_long to {choices}"
            return rejected(Refusal("too_long", reason, remedy), job.key)
        if self.spec.too_long == "drop":
            return Prepared(DROPPED, [], job.key, size, document.supervised_tokens(), reason)
        if self.spec.too_long == "split":
            return Prepared(KEPT, _split(document, limit), job.key, reason=f"{size:,} tokens, split")
        cut = Document(document.tokens[:limit], [(a, min(b, limit)) for a, b in document.trained if a < limit])
        if not cut.supervised_tokens():
            remedy = "raise data.max_seq_len, shorten the row, or set data.too_long to drop"
            return rejected(
                Refusal("too_long", reason + "; cut to that, no supervised token would be left", remedy), job.key
            )
        lost = document.supervised_tokens() - cut.supervised_tokens()
        reason += f"; {size - limit:,} tokens are cut off at the end, {lost:,} of them supervised"
        reason += ", with the token that ends the answer" if lost else ""
        return Prepared(TRUNCATED, [cut], job.key, size - limit, lost, reason)


def prompt_tokens(tokenizer: Tokenizer, text: str, messages: Sequence[Message], tools: list[Any] | None) -> list[int]:
    """What a model with a chat template reads before it answers these messages: the tokens that training puts before
    the same answer. text: what the template makes of them, up to where the answer starts. Raises TemplateFailure."""
    template = tokenizer.template
    assert template is not None
    turns: list[Turn] = []
    if tokenizer.joins_pieces and any(message["role"] == "assistant" for message in messages):
        with suppress(TemplateFailure):  # such a conversation is not trained either
            shown, turns, _ = _rendered(template, messages, tools)
            turns = [turn for turn in turns if shown[: turn[2]] == text[: turn[2]]]
    job = _Job(b"", text, [turn[1:] for turn in turns], [False] * len(turns))
    encoding = tokenizer.encodings([text])[0]
    if _token_ranges(encoding, len(encoding.ids), job, tokenizer.joins_pieces) is not None:
        return encoding.ids
    places = [0, *(place for span in job.spans for place in span), len(text)]
    return [token for piece in tokenizer.encode_batch([text[a:b] for a, b in pairwise(places)]) for token in piece]


def _rendered(
    template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None
) -> tuple[str, list[Turn], int]:
    """A conversation as text, the assistant's turns in it, and the length of its opening. Raises TemplateFailure."""
    layout = template.layout(messages) if tools is None else None
    if layout is not None:
        contents = [message["content"] for message in messages]
        text = layout.text(contents)
        # Either the template's code proves that the layout holds for every row, or its text does for this one.
        if template.prints_verbatim or template.render(messages) == text:
            return text, layout.spans(contents), layout.opening_length(contents)
    text, turns = exact_spans(template, messages, tools)
    return text, turns, 0


def _from_pretokens(pretokens: PretokenCache, job: _Job) -> tuple[list[int], Ranges | None] | None:
    """The same as from an encoding, from pre-tokens seen before; None where the tokenizer itself has to say."""
    text = job.text[job.opening :] if job.opening else job.text
    if not text.isascii():
        return None
    ids, edges = pretokens.encode(text, [place - job.opening for span in job.spans for place in span])
    if edges is None:
        return ids, None
    return ids, [
        (first, last) for first, last, trained in zip(edges[::2], edges[1::2], job.is_trained, strict=True) if trained
    ]


def _token_ranges(encoding: Encoding, size: int, job: _Job, joins_pieces: bool) -> Ranges | None:
    """The tokens that hold the characters of each trained span; None where a token crosses a border of any span and the
    text can be cut."""
    ranges = []
    length = len(job.text) - job.opening
    for (start, stop), trained in zip(job.spans, job.is_trained, strict=True):
        start, stop = start - job.opening, stop - job.opening
        first = _token_at(encoding, start, length, size) if start else 0
        last = _token_at(encoding, stop, length, size)
        crossed = (
            start > 0 and _begins_before(encoding, first, start),
            last < size and _begins_before(encoding, last, stop),
        )
        if joins_pieces and any(crossed):
            return None
        # Where it cannot be cut (a tokenizer that puts spaces before pieces), a crossing token is trained: else the
        # first word of every answer might not be.
        if trained:
            ranges.append((first, last + crossed[1]))
    return ranges


def _begins_before(encoding: Encoding, token: int, place: int) -> bool:
    characters = encoding.token_to_chars(token)
    return characters is not None and characters[0] < place


def _token_at(encoding: Encoding, place: int, length: int, size: int) -> int:
    """The first token that holds the character at `place`, or where a tokenizer drops that one, the next."""
    for character in range(place, length):
        token = encoding.char_to_token(character)
        if token is not None:
            return token
    return size


def _with_ends(document: Document, tokenizer: Tokenizer) -> Document:
    """With what the tokenizer puts first (a bos token, or nothing), and the eos token, trained, at the end."""
    first = list(tokenizer.first_tokens)
    trained = [(start + len(first), stop + len(first)) for start, stop in document.trained]
    trained[-1] = (trained[-1][0], trained[-1][1] + 1)
    return Document([*first, *document.tokens, tokenizer.eos_token_id], trained)  # type: ignore[list-item] (checked)


def _split(document: Document, limit: int) -> list[Document]:
    """Text in parts of nearly equal length, so that none is too short to teach anything."""
    size = len(document.tokens)
    count = -(-size // limit)
    edges = [size * number // count for number in range(count + 1)]
    return [Document(document.tokens[a:b], [(0, b - a)]) for a, b in pairwise(edges)]
