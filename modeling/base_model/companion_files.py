"""The files next to a model's weights that decide its tokens and prompts, and those that an adapter brings for its base
model. Never imports torch."""

from pathlib import Path

from tunesmith.modeling.base_model.fingerprint import file_digest

TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)
_GENERATION = "generation_config.json"


def companions(base: Path, adapter: Path) -> dict[str, Path]:
    """Return the tokenizer, template and generation files of a base model with an adapter, by their relative names.

    An adapter with tokenizer.json brings all tokenizer files and templates, one with only a template brings that. Files
    of both are never mixed: an old template would replace a newer one that is stored elsewhere.
    """
    tokenizer = adapter if (adapter / "tokenizer.json").is_file() else base
    template = adapter if tokenizer == adapter or (adapter / TEMPLATE).is_file() else base
    files = {name: tokenizer / name for name in TOKENIZER_FILES}
    files |= {TEMPLATE: template / TEMPLATE}
    files |= {f"{MORE_TEMPLATES}/{path.name}": path for path in (template / MORE_TEMPLATES).glob("*.jinja")}
    files[_GENERATION] = (adapter if (adapter / _GENERATION).is_file() else base) / _GENERATION
    return {name: path for name, path in files.items() if path.is_file()}


def is_companion(name: str) -> bool:
    """Whether a file or directory of this name in a model directory is one of its `companions`."""
    return name in (*TOKENIZER_FILES, TEMPLATE, MORE_TEMPLATES, _GENERATION)


def companion_digests(base: Path, adapter: Path, cache: Path | None = None) -> dict[str, str]:
    """Return the SHA-256 of each of the `companions`."""
    return {name: file_digest(path, cache) for name, path in sorted(companions(base, adapter).items())}


def brought(base: Path, adapter: Path, cache: Path | None = None) -> list[str]:
    """Return what the adapter brings that its base model does not have: "tokenizer", "chat template", both or none."""
    own, others = (companion_digests(base, directory, cache) for directory in (adapter, base))
    names = {name for name in own.keys() | others.keys() if own.get(name) != others.get(name)}
    kinds = {"tokenizer": names & set(TOKENIZER_FILES), "chat template": names - {*TOKENIZER_FILES, _GENERATION}}
    return [kind for kind, different in kinds.items() if different]
