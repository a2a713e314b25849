"""Convert the trained part of the model: all weights, or LoRA on full-precision or 4-bit weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.configs.migration.draft import Draft


@dataclass(frozen=True)
class AdapterKeys:
    """Names of the options of LoRA in a tool."""

    rank: str
    alpha: str
    dropout: str
    modules: str
    rslora: str
    dora: str


def convert_lora(
    draft: Draft,
    names: AdapterKeys,
    kind: str,
    kind_keys: Sequence[str],
    *,
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> None:
    """Set the method's keys except target_modules. kind: lora or qlora; kind_keys: the source keys that decide.
    rank, alpha, dropout: the tool's defaults; rank None: there is none. alpha None: twice the rank."""
    draft.set("method.kind", kind, *kind_keys)
    used_rank = draft.source.get(names.rank, rank)
    if used_rank is None:
        draft.fail(names.rank, f"the key `{names.rank}` is missing", "add it: the rank of the adapter")
        return
    used_rank = draft.whole(names.rank, used_rank)
    if used_rank is None:
        return
    draft.set("method.lora_rank", used_rank, names.rank)
    twice = "twice the rank" if alpha is None and not draft.source.has(names.alpha) else ""
    default = alpha if alpha is not None else 2 * used_rank
    draft.set("method.lora_alpha", draft.source.get(names.alpha, default), names.alpha, note=twice)
    draft.copy(names.dropout, "method.lora_dropout", dropout)
    for key, recipe_key in ((names.rslora, "method.use_rslora"), (names.dora, "method.use_dora")):
        if draft.source.get(key):
            draft.copy(key, recipe_key)


def listed_names(value: object) -> list[str]:
    """Split the names of modules: a list, or text with commas or spaces."""
    names = value if isinstance(value, list) else str(value).replace(",", " ").split()
    return [str(name) for name in names]


def convert_modules(draft: Draft, key: str, value: object, *all_names: str) -> None:
    """Convert target modules. all_names: words that mean every linear layer."""
    names = listed_names(value)
    if any(name in all_names for name in names):
        draft.set("method.target_modules", "all-linear", key)
    else:
        draft.set("method.target_modules", names, key)
