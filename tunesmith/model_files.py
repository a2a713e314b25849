"""Exports and adapters are verified before they are served, evaluated, chatted with, merged or continued from.

The manifest of an export has the SHA-256 of every file. Covered is what determines the model's output: weights,
configuration, tokenizer and chat template. Not covered is what users edit: the model card, licenses,
generation_config.json (sampling defaults of other programs), and the place of the base model in adapter_config.json.
Standard library only: the launcher, the server and the inference process use it.
"""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tunesmith.errors import RunFault
from tunesmith.progress import advance

MANIFEST = "manifest.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_SETTINGS = "adapter_settings"
"""Key of the manifest: {"sha256": of the adapter's settings, see `settings_digest`}. Earlier versions wrote none."""
NOT_COVERED = ("README.md", "generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
BASE_FINGERPRINT = "base_fingerprint"
"""Key of an adapter's manifest: `ModelFacts.fingerprint` of its base model. Earlier versions wrote none."""
_BASE = "base_model_name_or_path"
_CHUNK_BYTES = 4 << 20
_digests: dict[tuple[str, int, int, int, int], str] = {}
"""SHA-256 by path, size, times and inode: a file is read once per process."""


def require_undamaged(directory: Path, *, weights: bool = True) -> None:
    """Raise RunFault if a covered file of the directory does not match its manifest. weights: whether to include them.

    A directory without a manifest of Tunesmith is accepted: its weights are checked when they are loaded.
    """
    if (fault := fault_of(directory, weights=weights)) is None:
        return
    run = directory.parent if (directory.parent / "plan.json").is_file() else None
    step = _manifest_of(directory).get("step")
    command = f"tunesmith export {run or 'RUN'}" + (f" --step {step}" if type(step) is int else "")
    raise RunFault(
        f"the model's files are damaged: {fault}",
        where=str(directory),
        remedy=f"export it again from its checkpoint: {command}; if you changed the file on purpose, delete {MANIFEST}",
    )


def fault_of(directory: Path, *, weights: bool = True) -> str | None:
    """Return what is wrong with the covered files of a directory, naming the file; None if nothing is, or if it has no
    manifest of Tunesmith."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if not isinstance(manifest, dict) or not _is_own(manifest):
        return None
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest():
        return f"{MANIFEST} does not match its hash: it was modified"
    excluded = (*NOT_COVERED, *(() if weights else ("*.safetensors",)))
    for name, facts in manifest["files"].items():
        if not any(fnmatch(name, pattern) for pattern in excluded):
            fault = _file_fault(directory / name, facts["num_bytes"], facts["sha256"])
            if fault is not None and (name != ADAPTER_CONFIG or not _has_settings(directory, manifest)):
                return f"{name} {fault}"
    return None


def _is_own(manifest: dict[str, Any]) -> bool:
    """Whether a manifest is Tunesmith's, also if one of its keys was damaged, and not another program's."""
    has_hashes = isinstance(manifest.get("files"), dict) and isinstance(manifest.get("sha256"), str)
    return has_hashes or "tunesmith_version" in manifest


def settings_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of an adapter's settings, without the place of its base model. Raises OSError or
    ValueError."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError("not a JSON object")
    content = {key: value for key, value in settings.items() if key != _BASE}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _has_settings(directory: Path, manifest: dict[str, Any]) -> bool:
    """Whether an adapter_config.json that was changed differs only in the place of the base model; for a manifest
    without a digest of the settings, whether it still describes an adapter."""
    path, recorded = directory / ADAPTER_CONFIG, (manifest.get(ADAPTER_SETTINGS) or {}).get("sha256")
    try:
        if recorded is None:
            settings = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(settings, dict) and "peft_type" in settings
        return settings_digest(path) == recorded
    except (OSError, ValueError):
        return False


def _file_fault(path: Path, num_bytes: int, sha256: str) -> str | None:
    try:
        facts = path.stat()
        if facts.st_size != num_bytes:
            return f"has {facts.st_size} bytes instead of {num_bytes}"
        key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
        if key not in _digests:
            _digests[key] = _digest_of(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if _digests[key] == sha256 else "does not match its hash: it was modified"


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            advance()
    return digest.hexdigest()


def _manifest_of(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
