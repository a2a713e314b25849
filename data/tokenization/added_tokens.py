"""Special tokens that a model's configuration declares, read and added as transformers does.

tokenizer_config.json      named tokens (bos_token, ...; also others that end in _token), added_tokens_decoder,
                           extra_special_tokens (a list, or names), additional_special_tokens (its earlier name)
special_tokens_map.json    the same, read only without an added_tokens_decoder; it then takes precedence
added_tokens.json          text and id of added tokens, read only without an added_tokens_decoder
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA, _ADDITIONAL, _DECODER = "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"


def declared(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, Any]:
    """Return the declarations of both files, by key."""
    merged = dict(config)
    if not merged.get(_EXTRA) and merged.get(_ADDITIONAL):
        merged[_EXTRA] = merged.pop(_ADDITIONAL)
    if _DECODER in config:
        return merged
    for key, value in special_map.items():
        if key == _EXTRA and isinstance(value, list):
            value = [*_items(merged.get(_EXTRA)), *value]
        merged[key] = value
    if not merged.get(_EXTRA) and merged.get(_ADDITIONAL):
        merged[_EXTRA] = merged.pop(_ADDITIONAL)
    return merged


def named_tokens(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the standard special tokens, by name."""
    return {name: text for name in NAMED if (text := _text_of(values.get(name))) is not None}


def add_declared(backend: Backend, values: Mapping[str, Any], added_file: Mapping[str, Any]) -> None:
    """Add the tokens that only the configuration declares, in transformers' order (tokenization_utils_tokenizers.py).
    values: as returned by `declared`. added_file: added_tokens.json.

    The tokens added around a text come from tokenizer.json only; add_bos_token of the configuration is ignored."""
    own = dict(sorted(backend.get_added_tokens_decoder().items()))
    known = {_key(token) for token in own.values()}
    extra = values.get(_EXTRA)
    specials = [*named_tokens(values).values(), *(text for item in _items(extra) if (text := _text_of(item)))]
    by_id: dict[int, AddedToken] = {}
    if _DECODER in values:
        by_id = {int(number): _token(entry["content"], entry) for number, entry in values[_DECODER].items()}
    else:
        for text, number in added_file.items():
            by_id[int(number)] = AddedToken(text, normalized=text not in specials, special=text in specials)
        by_id |= own  # tokenizer.json decides for an id in both
    new = [token for _, token in sorted(by_id.items()) if _key(token) not in known]
    texts = {token.content for token in (*own.values(), *new)}
    named = {key: value for key, value in values.items() if key.endswith("_token") and key not in NAMED}
    more = [*((name, values.get(name)) for name in NAMED), *named.items()]
    more += extra.items() if isinstance(extra, dict) else [("", item) for item in _items(extra)]
    for name, value in more:
        text = _text_of(value)
        if text is not None and text not in texts:
            flags = value if isinstance(value, dict) else {"special": True}
            new.append(_token(text, {**flags, "special": True} if name else flags))
            texts.add(text)
    for token in new:
        backend.add_tokens([token])


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else ()


def _token(text: str, flags: Mapping[str, Any]) -> AddedToken:
    return AddedToken(text, **{flag: bool(flags[flag]) for flag in _FLAGS if flag in flags})


def _key(token: AddedToken) -> tuple[object, ...]:
    return token.content, *(getattr(token, flag) for flag in _FLAGS)


def _text_of(token: Any) -> str | None:
    """Return the text of a special token: in the configuration, a string or an object with the key "content"."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
