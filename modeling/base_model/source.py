"""Resolves the base model of a recipe to a local Hugging Face directory. Never imports torch."""

import hashlib
import re
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.modeling.base_model.derived import derived_model
from tunesmith.modeling.base_model.facts import model_facts as model_facts
from tunesmith.modeling.base_model.fingerprint import file_digest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FETCHED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
]


def resolve_model(base: str, revision: str | None, recipe_dir: Path, *, cache: Path) -> Path:
    """Return the absolute directory of the model `base`: a directory, a GGUF file (converted once, into `cache`), or a
    hub id.

    Paths are resolved relative to the recipe's directory, then to the working directory. revision: only for a hub id.
    InputError if no model is found, with the locations tried.
    """
    tried = list(dict.fromkeys([(recipe_dir / Path(base).expanduser()).resolve(), Path(base).expanduser().resolve()]))
    for path in tried:
        if path.is_dir():
            return _checked_directory(path)
        if path.is_file():
            if path.suffix.lower() != ".gguf":
                raise InputError(
                    "the base model is a file, but not a GGUF file",
                    where=str(path),
                    remedy="use the directory that contains it",
                )
            return _converted(path, cache)
    if _is_path(base):
        raise InputError(
            f"the base model {base!r} does not exist",
            where="model.base",
            remedy="tried " + " and ".join(map(str, tried)) + "; use a Hugging Face directory, a GGUF file or a hub id",
        )
    return _fetched(base, revision, tried)


def _is_path(base: str) -> bool:
    return base.startswith(("/", "./", "../", "~")) or base.lower().endswith(".gguf") or not HUB_ID.fullmatch(base)


def _checked_directory(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    if (path / "adapter_config.json").is_file():
        raise InputError(
            "the base model is an adapter, and the recipe does not choose what to do with it",
            where=str(path),
            remedy="set model.adapter: merge (it is merged into its base model, and the run trains on the result) or "
            "model.adapter: continue (training starts from the adapter's weights)",
        )
    for inside in sorted(path.glob("*.gguf")):
        raise InputError(
            "the base model is a directory without config.json", where=str(path), remedy=f"use the file: {inside}"
        )
    raise InputError(
        "the base model is a directory without config.json", where=str(path), remedy="use a Hugging Face directory"
    )


def _converted(source: Path, cache: Path) -> Path:
    """Convert a GGUF file on first use."""
    # The number is that of the conversion: 2 carries over the scaling of rotary embeddings.
    digest = hashlib.sha256(f"2 {file_digest(source, cache)}".encode()).hexdigest()[:16]
    return derived_model(
        cache / "models" / f"{source.stem}-{digest}",
        "tunesmith.modeling.loading.gguf",
        [source],
        memory="converting needs about 20 bytes of memory per parameter",
        failure=lambda what, _: InputError(f"the GGUF file could not be converted: {what}", where=str(source)),
    )


def cached_hub_model(hub_id: str, revision: str | None) -> Path | None:
    """Return the directory of a model in the hub's cache on this machine, without network; None if it is not there."""
    if not HUB_ID.fullmatch(hub_id):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        directory = Path(snapshot_download(hub_id, revision=revision, local_files_only=True)).resolve()
    except (HfHubHTTPError, HFValidationError, OSError, ValueError):
        return None
    return directory if (directory / "config.json").is_file() else None


def hub_snapshot(directory: Path) -> tuple[str, str] | None:
    """Return hub id and commit of a directory in the hub's cache (models--org--name/snapshots/COMMIT); None for any
    other directory."""
    repository = directory.parent.parent.name
    if directory.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1), directory.name


def _fetched(hub_id: str, revision: str | None, tried: list[Path]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RevisionNotFoundError

    locations = "tried " + ", ".join(map(str, tried)) + " and the hub"
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=FETCHED, ignore_patterns=["*/*"])
        ).resolve()
    except GatedRepoError as error:
        raise InputError(
            f"the model {hub_id!r} is gated",
            where="model.base",
            remedy=f"accept its terms at https://huggingface.co/{hub_id} and log in: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"the model {hub_id!r} has no revision {revision!r}", where="model.revision") from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"the model {hub_id!r} was not found",
            where="model.base",
            remedy=f"{locations}; check the name, or log in if it is private",
        ) from error
    except (OSError, ValueError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise InputError(
            f"the model {hub_id!r} is not on this machine and {why}",
            where="model.base",
            remedy=f"{locations}; use a local directory, or download it once while online: hf download {hub_id}",
        ) from error
