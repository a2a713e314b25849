"""A model's tokenizer, loaded from a Hugging Face directory without transformers; tests compare the tokens."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from copy import copy
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.added_tokens import add_declared, declared, named_tokens
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.control_tokens import KEY, ControlTokens
from tunesmith.data.tokenization.encodings import continuing
from tunesmith.data.tokenization.model_size import embedding_size, exceeds
from tunesmith.data.tokenization.pretoken_cache import PretokenCache, make_pretoken_cache
from tunesmith.data.tokenization.template_variables import KEY as KWARGS
from tunesmith.data.tokenization.template_variables import TemplateKwargs
from tunesmith.data.tokenization.tokenizer_files import read_json, template_sources
from tunesmith.data.tokenization.turn_ends import is_ordinary
from tunesmith.errors import InputError

Part = tuple[str, bool]
"""A part of a text, and whether it is a special token to encode as text."""


class Tokenizer:
    """Text to token ids and back, with the chat template and the stop tokens. Threads may share a tokenizer: only its
    caches change after loading.

    template: None if the model has none. fingerprint: SHA-256 over everything that affects tokens and templates.
    """

    def __init__(
        self,
        backend: Backend,
        named: dict[str, str],
        template: ChatTemplate | None,
        stops: Sequence[int],
        fingerprint: str,
    ):
        self.backend, self.named, self.template, self.fingerprint = backend, named, template, fingerprint
        self.bos_token_id, self.eos_token_id = self._id("bos_token"), self._id("eos_token")
        self.pad_token_id = self._id("pad_token")
        self._declared_stops = tuple(stops)
        self._trusts_pretokens = True
        self._literals: dict[str, list[int]] = {}
        self.directory: Path | None = None
        self.chat_template: Path | None = None
        """The file that overrides the model's chat template, if any. directory: where the tokenizer was loaded from."""
        self.num_embeddings: int | None = None
        """Rows of the model's embedding; None if unknown."""
        self.plain_fingerprint = fingerprint  # without template_kwargs
        self.template_kwargs: dict[str, Any] = {}
        """Values of the chat template's variables, as in a recipe."""
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(
        cls,
        directory: Path,
        chat_template: Path | None = None,
        today: date | None = None,
        template_kwargs: TemplateKwargs | None = None,
    ) -> "Tokenizer":
        """Load tokenizer.json, tokenizer_config.json, generation_config.json and the chat template of a directory.

        chat_template: a file that overrides the model's template. today: the date that it prints; None: the current
        date. template_kwargs: see `with_template_kwargs`. Raises InputError if a file is missing or invalid.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                "the model has no tokenizer.json",
                where=str(directory),
                remedy="save it with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise InputError(
                f"tokenizer.json cannot be read: {error}", where=str(path), remedy="download it again"
            ) from error
        config = declared(
            *(read_json(directory / f"{name}.json") for name in ("tokenizer_config", "special_tokens_map"))
        )
        named = named_tokens(config)
        backend.no_truncation()
        backend.no_padding()
        _add_declared(backend, config, directory)
        sources, where = template_sources(directory, config, chat_template)
        generation = read_json(directory / "generation_config.json")
        stops = generation.get("eos_token_id", [])
        stops = [stops] if isinstance(stops, int) else list(stops or [])
        template = _make_template(backend, named, sources, stops, where, today)
        contents = [backend.to_str(), named, sources, stops, template.today if template else None]
        size = embedding_size(directory)
        contents += [size] if exceeds(backend, size) else []
        fingerprint = hashlib.sha256(json.dumps(contents, sort_keys=True).encode("utf-8")).hexdigest()
        tokenizer = cls(backend, named, template, stops, fingerprint)
        tokenizer.directory, tokenizer.chat_template, tokenizer.num_embeddings = directory, chat_template, size
        return tokenizer.with_template_kwargs(template_kwargs or {})

    def with_template_kwargs(self, values: TemplateKwargs) -> "Tokenizer":
        """Return a tokenizer whose chat template has these values for its variables, in every rendering. Raises
        InputError (UnreadableVariable) for a name that the template does not read."""
        if not values:
            return self
        if self.template is None:
            raise InputError("the model has no chat template", where=KWARGS, remedy="remove it")
        other = copy(self)
        for cached in ("control", "stop_token_ids"):
            other.__dict__.pop(cached, None)
        other.template = self.template.with_variables(values)
        other.template_kwargs = {**self.template_kwargs, **values}
        described = json.dumps([self.plain_fingerprint, other.template_kwargs], sort_keys=True)
        other.fingerprint = hashlib.sha256(described.encode("utf-8")).hexdigest()
        return other

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Tokenize a text; special tokens written in the text become those tokens."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts without added tokens, on all cores unless TOKENIZERS_PARALLELISM is false."""
        pretokens = self.pretokens
        cached = [pretokens.encode(text)[0] if pretokens is not None and text.isascii() else None for text in texts]
        rest = [text for text, ids in zip(texts, cached, strict=True) if ids is None]
        encodings = iter(self.encodings(rest))
        return [next(encodings).ids if ids is None else ids for ids in cached]

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenize like encode_batch; the results include the character offsets of each token."""
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    @cached_property
    def control(self) -> ControlTokens:
        """The special tokens, for texts in which they are text."""
        stops = [text for token in self.stop_token_ids if (text := self.backend.id_to_token(token)) is not None]
        return ControlTokens(self.backend, self.named, self.template, stops)

    def encode_content(self, text: str) -> list[int]:
        """Tokenize a user's text without added tokens; special tokens written in it are text. Raises Refusal."""
        text, literal = self.control.unmarked(self.control.marked_text(text))
        return self.encode_parts(parts_of(text, literal))

    def encode_text_alone(self, text: str, *, split_special_tokens: bool) -> list[int]:
        """Tokenize a user's text with the tokens that the tokenizer adds, for a model without a chat template. Raises
        Refusal."""
        if not split_special_tokens:
            return self.encode(text, add_special_tokens=True)
        return self.with_added_tokens(self.content_encodings([text])[0])

    def content_encodings(self, texts: Sequence[str], prefix: str = "") -> list[Encoding]:
        """Tokenize users' texts like `encodings`; special tokens written in them are text. prefix: of every text, not
        written by users. Raises Refusal."""
        occurs = [self.control.occurs_in(text) for text in texts]
        encodings = iter(self.encodings([prefix + text for text, o in zip(texts, occurs, strict=True) if not o]))
        return [
            self._content_encoding(text, prefix) if o else next(encodings)
            for text, o in zip(texts, occurs, strict=True)
        ]

    def require_encodable(self, text: str) -> None:
        """Raise Refusal if a special token in a user's text cannot be encoded as text."""
        if self.control.occurs_in(text) or self.control.folds:
            self._content_encoding(text)

    def _content_encoding(self, text: str, prefix: str = "") -> Encoding:
        text, literal = self.control.unmarked(prefix + self.control.marked_text(text))
        parts = parts_of(text, literal)
        return Encoding.merge([self._part(part, place > 0) for place, part in enumerate(parts)], growing_offsets=True)

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Tokenize the consecutive parts of a text separately. Raises Refusal if a special token cannot be text."""
        if not self.joins_pieces:
            return [token for number, part in enumerate(parts) for token in self._part(part, number > 0).ids]
        whole = iter(self.encode_batch([text for text, is_literal in parts if not is_literal]))
        return [t for text, is_literal in parts for t in (self._literal_ids(text) if is_literal else next(whole))]

    def _literal_ids(self, text: str) -> list[int]:
        ids = self._literals.get(text)
        if ids is None:
            ids = self._literals[text] = self._part((text, True), False).ids
        return ids

    def _part(self, part: Part, is_inner: bool) -> Encoding:
        """Tokenize a part of a text. is_inner: it does not begin the text, so it gets no leading space."""
        text, is_literal = part
        backend = self._without_added_tokens if is_literal else self.backend
        encoding = backend.encode(text, add_special_tokens=False)
        if is_inner and not self.joins_pieces:
            encoding = continuing(backend, text) or encoding
        if is_literal and not self.control.ids.isdisjoint(encoding.ids):
            raise Refusal(
                "special_token",
                f'the tokenizer cannot encode "{text}" as text, only as a special token',
                f"remove it from the row, or set {KEY}: false",
            )
        return encoding

    @cached_property
    def _without_added_tokens(self) -> Backend:
        described = json.loads(self.backend.to_str())
        return Backend.from_str(json.dumps({**described, "added_tokens": []}))

    @property
    def pretokens(self) -> PretokenCache | None:
        """The pre-token cache for ASCII texts; None if the tokenizer does not support it, or if its tokens once
        differed from the tokenizer's."""
        return self._pretokens if self._trusts_pretokens else None

    def drop_pretokens(self) -> None:
        """Disable the pre-token cache permanently, in all threads."""
        self._trusts_pretokens = False

    @cached_property
    def _pretokens(self) -> PretokenCache | None:
        return make_pretoken_cache(self.backend)

    @cached_property
    def num_added_tokens(self) -> int:
        """Number of special tokens that the tokenizer adds to a text by default, such as [CLS] and [SEP]."""
        return self.backend.num_special_tokens_to_add(is_pair=False)

    @cached_property
    def num_added_in_pair(self) -> int:
        """Number of special tokens that the tokenizer adds to a pair of texts."""
        return self.backend.num_special_tokens_to_add(is_pair=True)

    def with_added_tokens(self, encoding: Encoding, second: Encoding | None = None) -> list[int]:
        """Return the ids of a text, or a pair, with the special tokens that the tokenizer adds."""
        return self.backend.post_process(encoding, second, True).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        """Return the text of one token; bytes that are not a complete character become U+FFFD."""
        return self.backend.decode([token], skip_special_tokens=False)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: eos, those of generation_config.json, and the template's end-of-turn tokens."""
        ids = [self.eos_token_id, *self._declared_stops]
        if self.template is not None:
            ends = [token for token in self.template.closing_tokens if token not in self.template.tokens_inside]
            ids += [self.backend.token_to_id(token) for token in ends]
        return tuple(dict.fromkeys(token for token in ids if token is not None))

    @cached_property
    def first_tokens(self) -> tuple[int, ...]:
        """Tokens that the tokenizer adds before a text by default: the bos token, or none."""
        ids = self.encode("", add_special_tokens=True)
        return (self.bos_token_id,) if self.bos_token_id is not None and self.bos_token_id in ids[:1] else ()

    @cached_property
    def joins_pieces(self) -> bool:
        """Whether a text may be tokenized in pieces: the tokenizer does not add a space before a piece."""
        return _joins_pieces(self.backend)

    @cached_property
    def unwritable_bytes(self) -> bytes:
        """UTF-8 bytes missing in a byte-level vocabulary, which the tokenizer silently drops; usually empty."""
        described = json.loads(self.backend.to_str())
        if described["model"].get("byte_fallback") or described["model"].get("unk_token"):
            return b""
        if "ByteLevel" not in json.dumps([described["pre_tokenizer"], described["normalizer"]]):
            return b""
        known = {
            byte for byte, character in _byte_characters().items() if self.backend.token_to_id(character) is not None
        }
        return bytes(byte for byte in range(0xF5) if byte not in known and byte not in (0xC0, 0xC1))

    def _id(self, name: str) -> int | None:
        return self.backend.token_to_id(self.named[name]) if name in self.named else None


def parts_of(text: str, literal: Sequence[tuple[int, int]], places: Iterable[int] = ()) -> list[Part]:
    """Split a text at the borders of its literal spans, and at other places."""
    cuts = sorted({0, len(text), *places, *(place for span in literal for place in span)})
    starts = {start for start, _ in literal}
    return [(text[a:b], a in starts) for a, b in pairwise(cuts)]


def _byte_characters() -> dict[int, str]:
    """Return the character that represents each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}


def _joins_pieces(backend: Backend) -> bool:
    return "".join(backend.encode("a", add_special_tokens=False).tokens) == "a"


def _make_template(
    backend: Backend,
    named: dict[str, str],
    sources: dict[str, str],
    stops: Sequence[int],
    where: str,
    today: date | None,
) -> ChatTemplate | None:
    if "default" not in sources:
        return None
    added = backend.get_added_tokens_decoder().values()
    special = {token.content for token in added} | set(named.values())
    cuts = [
        t.content for t in added if not (t.lstrip or t.rstrip or t.single_word or (t.normalized and backend.normalizer))
    ]
    return ChatTemplate(
        sources["default"],
        named.get("bos_token"),
        named.get("eos_token"),
        variables={name: text for name, text in named.items() if name not in ("bos_token", "eos_token")},
        special_tokens=sorted(token for token in special if not is_ordinary(token)),
        stop_tokens=[text for stop in stops if (text := backend.id_to_token(stop)) is not None],
        cut_tokens=cuts if _joins_pieces(backend) else (),
        tool_source=sources.get("tool_use"),
        today=today,
        where=where,
    )


def _add_declared(backend: Backend, config: dict[str, Any], directory: Path) -> None:
    """Add the tokens that only the configuration declares. Raises InputError if they are not written as such."""
    try:
        add_declared(backend, config, read_json(directory / "added_tokens.json"))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"the added tokens of the model cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}",
            where=f"{directory}: added_tokens_decoder and special tokens in tokenizer_config.json, added_tokens.json",
            remedy="download the tokenizer's files again, or save them with transformers' save_pretrained",
        ) from error
