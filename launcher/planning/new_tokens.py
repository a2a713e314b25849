"""The base model with the tokens of model.add_tokens: a copy in the cache, created at first use."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tunesmith.configs.combinations import Combination, require_combination
from tunesmith.configs.plan import AddedTokens, Choice, ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora
from tunesmith.configs.sections.model import NewToken
from tunesmith.data.cache import cache_root
from tunesmith.data.tokenization.new_tokens import extended_tokenizer
from tunesmith.errors import InputError
from tunesmith.launcher.planning.linked_copy import linked_copy
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.base_model.new_rows import NewRows, write_with_rows
from tunesmith.modeling.base_model.weight_files import read_object
from tunesmith.report.wording import count, plural

_FORMAT = 1
"""Number of the copy's content; to be raised if tokenizer files or initial rows change."""


def with_new_tokens(recipe: Recipe, base: ModelFacts) -> ModelFacts:
    """Return the facts of a copy of the base model that has the recipe's tokens in its tokenizer, and rows for them in
    embedding and head.

    Free rows of the base model are used before the matrices grow. base: facts of the base model, whose directory is
    complete. Raises InputError if the recipe or one of the tokens is not possible, RunFault if the cache is full.
    """
    # Only what adding tokens rules out: the plan checks all settings once the ZeRO stage is known.
    require_combination(
        Combination(recipe.method.kind, False, "adamw", 0, "none", "none", False, "cuda", recipe.task, adds_tokens=True)
    )
    _require_free_targets(recipe)
    source = Path(base.directory)
    extended = extended_tokenizer(source, recipe.model.add_tokens, base.vocab_size)
    _require_free_ids(source, dict(zip(extended.ids, recipe.model.add_tokens, strict=True)))
    vocab_size = max(base.vocab_size, extended.num_ids)
    rows = sorted({*extended.ids, *range(base.vocab_size, vocab_size)})
    new = NewRows(vocab_size, {row: extended.described.get(row, []) for row in rows}, extended.num_known)
    final = cache_root() / "models" / f"{source.name}-tokens-{_digest(recipe, base)}"
    directory = linked_copy(
        final, lambda target: write_with_rows(source, target, new, extended.files), "with the added tokens"
    )
    facts = model_facts(directory, base.source, recipe.method, cache=cache_root(), task=recipe.task)
    own_rows = len(rows) * base.hidden_size * (1 if base.tied_embeddings else 2)
    added = AddedTokens(
        base_directory=base.base_directory,
        base_vocab_size=base.vocab_size,
        tokens=[token.token for token in recipe.model.add_tokens],
        rows=rows,
    )
    trained = facts.num_trained_params + (own_rows if isinstance(recipe.method, Lora) else 0)
    return facts.model_copy(
        update={"added": added, "num_trained_params": trained, "adapter_tokenizer": base.adapter_tokenizer}
    )


def new_tokens_choice(recipe: Recipe, model: ModelFacts) -> list[Choice]:
    """How the added tokens are initialized and trained; empty if there are none."""
    if model.added is None:
        return []
    tokens, rows, grown = recipe.model.add_tokens, model.added.rows, model.vocab_size - model.added.base_vocab_size
    described = sum(token.description is not None for token in tokens)
    others = len(rows) - len(tokens)
    sources = ((described, "descriptions"), (len(rows) - described, "the mean of the vocabulary"))
    initial = [f"{plural(number, 'row')} from {source}" for number, source in sources if number]
    parts = ["embedding" if model.tied_embeddings else "embedding and head"]
    parts.append(f"grown by {plural(grown, 'row')} to {count(model.vocab_size)}" if grown else "free rows are used")
    parts.append("initialized: " + ", ".join(initial))
    if others > 0:
        parts.append(f"{plural(others, 'token')} of the tokenizer had no row")
    if isinstance(recipe.method, Lora):
        parts.append("only these rows of them are trained; head and loss stay fused, with a copy of the head per pass")
    return [Choice(key="added tokens", value=len(tokens), reason="; ".join(parts))]


def _require_free_targets(recipe: Recipe) -> None:
    """Raise InputError if an adapter is to be trained on a module whose rows are trained themselves."""
    targets = recipe.method.target_modules if isinstance(recipe.method, Lora) else []
    for target in [] if isinstance(targets, str) else targets:
        if target.rpartition(".")[2] in ("embed_tokens", "wte", "lm_head", "word_embeddings", "embed_in", "embed_out"):
            raise InputError(
                f"the new rows of {target} are trained themselves: it cannot also get an adapter",
                where="key method.target_modules",
                remedy=f"remove {target} from the list, or train all weights (method.kind: full)",
            )


def _require_free_ids(source: Path, tokens: Mapping[int, NewToken]) -> None:
    """Raise InputError if a token gets an id that the model uses although its tokenizer does not have it, such as that
    of a placeholder for images. tokens: by id."""
    path = source / "config.json"
    for key, number in read_object(path).items():
        if key.endswith(("_token_id", "_token_index")) and type(number) is int and number in tokens:
            raise InputError(
                f"the token {tokens[number].token!r} would get the id {number} of the model's {key}, which the "
                "tokenizer does not have",
                where=f"key model.add_tokens; {path}: {key}",
                remedy=f"add the token of {key} to the tokenizer with transformers first, or remove model.add_tokens",
            )


def _digest(recipe: Recipe, base: ModelFacts) -> str:
    tokens = [token.model_dump() for token in recipe.model.add_tokens]
    content = json.dumps([_FORMAT, base.fingerprint, base.directory, tokens])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
