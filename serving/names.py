"""Model names and object ids.

A fine-tuned model is named `ft:{base}:{organization}:{suffix}:{8 characters}`; its checkpoints append `:ckpt-step-N`.
Clients split these names on `:` and put them into paths, and base names from Hugging Face contain a `/`: in a tuned
name every `/` of the base is written `--`, as in Hugging Face's cache. An empty suffix leaves `::`.
"""

import hashlib
import re
import secrets
import string
from dataclasses import dataclass

ALPHABET = string.ascii_letters + string.digits
ID_LENGTH = 24
"""Characters of an id after its prefix: 142 bits, so that ids cannot be guessed."""
ORGANIZATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_BASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_TUNED = re.compile(
    r"ft:(?P<base>[A-Za-z0-9][A-Za-z0-9._-]*):(?P<organization>[A-Za-z0-9_-]+):(?P<suffix>[A-Za-z0-9._-]*)"
    r":(?P<unique>[A-Za-z0-9]{8})(:ckpt-step-(?P<step>[0-9]{1,12}))?"
)
_ID = re.compile(r"[a-z]+[-_][A-Za-z0-9]{8,64}")


@dataclass(frozen=True)
class TunedName:
    """The parts of a tuned model's name. base: as written by `safe_base`. step: of a checkpoint; None for the model."""

    base: str
    organization: str
    suffix: str
    unique: str
    step: int | None = None

    def __str__(self) -> str:
        name = f"ft:{self.base}:{self.organization}:{self.suffix}:{self.unique}"
        return name if self.step is None else f"{name}:ckpt-step-{self.step}"

    @property
    def model(self) -> str:
        """The name without `:ckpt-step-N`."""
        return str(TunedName(self.base, self.organization, self.suffix, self.unique))


def is_base_name(name: str) -> bool:
    return _BASE.fullmatch(name) is not None


def is_organization(name: str) -> bool:
    return ORGANIZATION.fullmatch(name) is not None


def safe_base(name: str) -> str:
    return name.replace("/", "--")


def safe_suffix(suffix: str | None) -> str:
    """The suffix for use in a name: characters other than ASCII letters, digits, `.`, `_` and `-` become `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", suffix or "").strip("-")


def make_tuned_name(base: str, organization: str, suffix: str | None) -> str:
    """Create a unique name. base: a key of `Settings.bases`."""
    return str(TunedName(safe_base(base), organization, safe_suffix(suffix), random_text(8)))


def checkpoint_name(model: str, step: int) -> str:
    return f"{model}:ckpt-step-{step}"


def parse_tuned_name(name: str) -> TunedName | None:
    """Split a tuned model's name into its parts; None for any other text."""
    match = _TUNED.fullmatch(name)
    if match is None:
        return None
    step = match["step"]
    parts = match["base"], match["organization"], match["suffix"], match["unique"]
    return TunedName(*parts, None if step is None else int(step))


def random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def make_id(prefix: str) -> str:
    """Create a random id: `make_id("file-")`. Prefixes: file-, upload_, part_, ftjob-, ftevent-, ftckpt_, cp_, req_."""
    return prefix + random_text(ID_LENGTH)


def id_of(prefix: str, text: str) -> str:
    """A deterministic id, derived from a text: creating the same object again gives the same id."""
    return prefix + hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def is_id(text: str) -> bool:
    """Whether a text is a well-formed id: only such a text is ever used as part of a path."""
    return _ID.fullmatch(text) is not None
