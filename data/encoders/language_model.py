"""Encode rows of the tasks chat, completion and text: the tokens of a row, and which of them are trained.

The full text is tokenized with the model's tokenizer; the character offsets of each token determine which are trained.
If a token would span the end of a prompt and the start of an answer, the text is split at all assistant turns instead,
trained or not. This matches inference (`prompt_tokens`), and no token of the prompt is trained. An opening that many
rows share (a system prompt) is tokenized once and split off at a special token, which does not change the tokens.

A special token that a user or a tool wrote is encoded as text (tokenization/control_tokens.py): the text is also split
at its borders. In rows of the task text, special tokens keep their meaning, such as separators of documents.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice, pairwise
from threading import Lock
from typing import Any

from tunesmith.data.encoders.conversation import Span, checked_rendering, rendered
from tunesmith.data.encoders.job import Job, from_pretokens, token_ranges, tokens_of_part
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.encoders.split_turns import joined, not_shown, split_turns
from tunesmith.data.outcomes import DROPPED, KEPT, MASKED, TRUNCATED, Document, Prepared, Ranges, rejected
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import Completion, Conversation, Text, read_row
from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate, Message
from tunesmith.data.tokenization.rendering_check import list_of
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

_OPENINGS_KEPT = 1024


CHECKED = 64
"""Rows that an encoder first tokenizes both ways; if the pre-token cache gives other tokens, it is disabled."""


class LanguageModelEncoder:
    """Encoder of rows of one task. Deterministic: the same rows give the same tokens, in any batches. Threads may share
    an encoder.

    Raises InputError if the tokenizer does not suit the task.
    """

    def __init__(self, tokenizer: Tokenizer, spec: EncodingSpec):
        if spec.facts.templated and tokenizer.template is None:
            raise InputError(
                "the model has no chat template",
                where=f"task: {spec.task}",
                remedy="set model.chat_template to a template, or use a chat model",
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
        """Encode rows; return one result per value, in order. values: parsed rows, or a Refusal for an invalid row."""
        rows = [self._jobs(value) for value in values]
        good = [job for jobs in rows if not isinstance(jobs, Refusal) for job in jobs]
        self._encode_whole([job for job in good if not job.cut])
        self._encode_cut([job for job in good if job.cut])
        return [
            rejected(jobs) if isinstance(jobs, Refusal) else joined([self._finished(job) for job in jobs])
            for jobs in rows
        ]

    def _jobs(self, value: Any) -> list[Job] | Refusal:
        if isinstance(value, Refusal):
            return value
        try:
            row = read_row(value, self.spec.task)
            if isinstance(row, Conversation):
                jobs = self._conversations(row)
            elif isinstance(row, Text):
                jobs = [Job(row.key(), row.text, [(0, len(row.text))], [True])]
            else:
                jobs = [self._completion(row)]
            for job in jobs:
                self._check_writable(job.text)
            return jobs
        except Refusal as refusal:
            return refusal

    def _conversations(self, row: Conversation) -> list[Job]:
        """The conversation of a row, or those of its turns. Raises Refusal."""
        parts = [row.messages]
        if self.spec.earlier_thinking == "split":
            parts = split_turns(self.tokenizer.template, row.messages, row.tools)  # type: ignore[arg-type] (checked)
        jobs = [self._conversation(replace(row, messages=messages)) for messages in parts]
        key, masked = row.key(), any(message.get("weight", 1) == 0 for message in row.messages)
        omissions = not_shown(row.messages, [omission for job in jobs for omission in job.omissions])
        for number, job in enumerate(jobs):
            job.key, job.masked = key, masked
            if len(jobs) > 1:
                job.omissions = () if number else omissions
        return jobs

    def _conversation(self, row: Conversation) -> Job:
        template: ChatTemplate = self.tokenizer.template  # type: ignore[assignment] (checked at the start)
        messages, tools, control = row.messages, row.tools, self.tokenizer.control
        marked = None
        if self.spec.split_special_tokens:
            control.refuse_framing(messages)
            marked = control.marked(messages, tools)
            num_special = 0 if marked is None else marked.num_tokens
        else:
            num_special = control.num_in(messages, tools)
        shown = marked or row
        rendering = checked_rendering(
            template,
            shown.messages,
            shown.tools,
            rejects=self.spec.omitted_fields == "error",
            rejects_earlier_thinking=self.spec.earlier_thinking == "reject",
        )
        spans, supervised = zip(*rendering.spans(messages), strict=True)
        job = Job(b"", rendering.text, spans, supervised, opening=rendering.opening)
        job.omissions, job.num_special = rendering.omissions, num_special
        job.inserted = rendering.inserted(template, messages)
        if marked is not None:
            control.require_kept(marked, rendering.text, messages, tools)
            self._split_special(job)
        return job

    def _completion(self, row: Completion) -> Job:
        control, prompt = self.tokenizer.control, row.prompt
        if self.spec.split_special_tokens:
            prompt = control.marked_text(prompt)
            if token := control.framing_token(row.completion):
                raise Refusal(
                    "special_token",
                    f'the completion contains "{token}", which begins or ends a text',
                    "remove it (an end token is added to every completion), or set data.split_special_tokens: false",
                )
        text = prompt + row.completion
        job = Job(row.key(), text, [(len(prompt), len(text))], [True], cut=self.tokenizer.joins_pieces)
        job.num_special = control.num_tokens(row.prompt)
        if prompt is not row.prompt:
            self._split_special(job)
        return job

    def _split_special(self, job: Job) -> None:
        """Restore the text of a job with marked special tokens. Raises Refusal if one cannot be text."""
        job.text, job.literal = self.tokenizer.control.unmarked(job.text)
        job.cut, job.opening = True, 0
        for start, stop in job.literal:
            self.tokenizer.encode_parts([("", False), (job.text[start:stop], True)])

    def _check_writable(self, text: str) -> None:
        """Raise Refusal if the tokenizer would drop a character, so that the tokens would not represent the text."""
        missing = self.tokenizer.unwritable_bytes
        if missing and len(data := text.encode("utf-8")) != len(data.translate(None, missing)):
            lost = next(c for c in text if any(byte in missing for byte in c.encode("utf-8")))
            raise Refusal(
                "unknown_character",
                f"the model's tokenizer has no token for the character U+{ord(lost):04X} and would drop it",
                "remove the character; it is usually an artifact of another program",
            )

    def _encode_whole(self, jobs: list[Job]) -> None:
        openings = [self._opening_ids(job.text[: job.opening]) if job.opening else None for job in jobs]
        for job, ids in zip(jobs, openings, strict=True):
            job.opening = 0 if ids is None else job.opening
        crossing = []
        for job, opening, (ids, ranges) in zip(jobs, openings, self._encoded(jobs), strict=True):
            if ranges is None:
                crossing.append(job)
            elif opening:
                job.tokens = opening + ids
                job.supervised = [(start + len(opening), stop + len(opening)) for start, stop in ranges]
            else:
                job.tokens, job.supervised = ids, ranges
        self._encode_cut(crossing)

    def _encoded(self, jobs: list[Job]) -> list[tuple[list[int], Ranges | None]]:
        """Return the tokens after each job's opening and which are trained; None if the text must be split."""
        if self._unchecked:
            self._check_pretokens(jobs)
        pretokens = self.tokenizer.pretokens
        cached = [None if pretokens is None else from_pretokens(pretokens, job) for job in jobs]
        rest = iter(self._from_tokenizer([job for job, tokens in zip(jobs, cached, strict=True) if tokens is None]))
        return [next(rest) if tokens is None else tokens for tokens in cached]

    def _check_pretokens(self, jobs: list[Job]) -> None:
        """Disable the pre-token cache if one of the first rows has other tokens without it. Other threads wait, so that
        none uses an unchecked cache."""
        with self._checking:
            pretokens = self.tokenizer.pretokens
            if pretokens is None or not self._unchecked:
                return
            cached = ((job, from_pretokens(pretokens, job)) for job in jobs)
            checked = list(islice(((job, tokens) for job, tokens in cached if tokens is not None), self._unchecked))
            if [tokens for _, tokens in checked] != self._from_tokenizer([job for job, _ in checked]):
                self.tokenizer.drop_pretokens()
            self._unchecked -= len(checked)

    def _from_tokenizer(self, jobs: list[Job]) -> list[tuple[list[int], Ranges | None]]:
        encodings = self.tokenizer.encodings([job.text[job.opening :] for job in jobs])
        joins = self.tokenizer.joins_pieces
        return [
            (encoding.ids, token_ranges(encoding, len(encoding.ids), job, joins))
            for job, encoding in zip(jobs, encodings, strict=True)
        ]

    def _opening_ids(self, text: str) -> list[int] | None:
        """Return the cached tokens of an opening; None if there are too many different openings to cache."""
        ids = self._openings.get(text)
        if ids is None and len(self._openings) < _OPENINGS_KEPT:
            ids = self._openings[text] = self.tokenizer.encode(text)
        return ids

    def _encode_cut(self, jobs: list[Job]) -> None:
        """Tokenize texts in pieces, split at the starts and ends of trained spans."""
        cuts = [[0, *(place for span in job.spans for place in span), len(job.text)] for job in jobs]
        edges = [(job, a, b) for job, places in zip(jobs, cuts, strict=True) for a, b in pairwise(places)]
        encoded = iter(self.tokenizer.encode_batch([job.text[a:b] for job, a, b in edges if not job.literal]))
        for job, places in zip(jobs, cuts, strict=True):
            for number, (first, last) in enumerate(pairwise(places)):
                start = len(job.tokens)
                job.tokens += tokens_of_part(self.tokenizer, job, first, last) if job.literal else next(encoded)
                if number % 2 and job.is_supervised[number // 2]:
                    job.supervised.append((start, len(job.tokens)))

    def _finished(self, job: Job) -> Prepared:
        result = self._outcome(job)
        if result.documents:
            result.inserted = dict(Counter(job.inserted))
        if not job.omissions or not result.documents:
            return result
        omitted = Counter(omission.kind for omission in job.omissions)
        reason = f"the chat template omits {list_of(job.omissions)}"
        return replace(result, omitted=dict(omitted), reason=f"{result.reason}; {reason}".removeprefix("; "))

    def _outcome(self, job: Job) -> Prepared:
        document = Document(job.tokens, job.supervised)
        if not self.spec.facts.templated:
            document = _with_ends(document, self.tokenizer)
        if not document.supervised_tokens():
            return rejected(
                Refusal("not_supervised", "no supervised token: no part of the row is trained", "remove the row"),
                job.key,
            )
        if len(document.tokens) > self.spec.max_seq_len:
            return self._too_long(document, job)
        return Prepared(MASKED if job.masked else KEPT, [document], job.key, num_special=job.num_special)

    def _too_long(self, document: Document, job: Job) -> Prepared:
        size, limit = len(document.tokens), self.spec.max_seq_len
        reason = f"too long: {size:,} tokens, max_seq_len is {limit:,}"
        if self.spec.too_long == "error":
            choices = "truncate or drop" if self.spec.facts.has_prompt else "truncate, drop or split"
            remedy = f"increase data.max_seq_len, shorten the row, or set data.too_long to {choices}"
            return rejected(Refusal("too_long", reason, remedy), job.key)
        if self.spec.too_long == "drop":
            return Prepared(DROPPED, [], job.key, size, document.supervised_tokens(), reason)
        if self.spec.too_long == "split":
            return Prepared(KEPT, _split(document, limit), job.key, reason=f"{size:,} tokens, split")
        cut = Document(document.tokens[:limit], [(a, min(b, limit)) for a, b in document.supervised if a < limit])
        if not cut.supervised_tokens():
            remedy = "increase data.max_seq_len, shorten the row, or set data.too_long to drop"
            return rejected(
                Refusal("too_long", reason + "; truncated, it would have no supervised token", remedy), job.key
            )
        lost = document.supervised_tokens() - cut.supervised_tokens()
        reason += f"; {size - limit:,} tokens are truncated at the end, {lost:,} of them supervised"
        reason += ", including the end-of-turn token" if lost else ""
        return Prepared(TRUNCATED, [cut], job.key, size - limit, lost, reason, num_special=job.num_special)


def prompt_tokens(
    tokenizer: Tokenizer,
    text: str,
    messages: Sequence[Message],
    tools: list[Any] | None,
    *,
    split_special_tokens: bool = True,
) -> list[int]:
    """Return the prompt tokens of a chat model for these messages, the same tokens as before this answer in training.
    text: the messages rendered with the generation prompt. split_special_tokens: as in the recipe. Raises Refusal."""
    template, control = tokenizer.template, tokenizer.control
    assert template is not None
    marked = None
    if split_special_tokens:
        control.refuse_framing(messages)
        marked = control.marked(messages, tools)
    if marked is not None:
        text = template.render(marked.messages, marked.tools, add_generation_prompt=True)
        control.require_kept(marked, text, messages, tools, add_generation_prompt=True)
        messages, tools = marked.messages, marked.tools
    turns: list[Span] = []
    may_cut = tokenizer.joins_pieces or marked is not None
    if may_cut and any(message["role"] == "assistant" for message in messages):
        with suppress(TemplateFailure):  # such a conversation is not trained either
            rendering = rendered(template, messages, tools)
            turns = [span for span, _ in rendering.spans(messages) if rendering.text[: span[1]] == text[: span[1]]]
    job = Job(b"", text, turns, [False] * len(turns))
    places = [0, *(place for span in job.spans for place in span), len(text)]
    if marked is not None:
        job.text, job.literal = control.unmarked(text)
        return [token for a, b in pairwise(places) for token in tokens_of_part(tokenizer, job, a, b)]
    encoding = tokenizer.encodings([text])[0]
    if token_ranges(encoding, len(encoding.ids), job, tokenizer.joins_pieces) is not None:
        return encoding.ids
    return [token for piece in tokenizer.encode_batch([text[a:b] for a, b in pairwise(places)]) for token in piece]


def _with_ends(document: Document, tokenizer: Tokenizer) -> Document:
    """Add the tokenizer's leading tokens (a bos token, or none), and a trained eos token at the end."""
    first = list(tokenizer.first_tokens)
    supervised = [(start + len(first), stop + len(first)) for start, stop in document.supervised]
    supervised[-1] = (supervised[-1][0], supervised[-1][1] + 1)
    return Document([*first, *document.tokens, tokenizer.eos_token_id], supervised)  # type: ignore[list-item] (checked)


def _split(document: Document, limit: int) -> list[Document]:
    """Split a document into parts of nearly equal length, so that none is very short."""
    size = len(document.tokens)
    count = -(-size // limit)
    edges = [size * number // count for number in range(count + 1)]
    return [Document(document.tokens[a:b], [(0, b - a)]) for a, b in pairwise(edges)]
