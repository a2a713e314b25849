"""What a server is told: a YAML file, and what the command line adds to it."""

import base64
import json
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from tunesmith.configs.recipe import Deidentify
from tunesmith.configs.yaml_tree import NotYaml, Tree, key_name, read_tree
from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.errors import InputError
from tunesmith.launcher.clusters import NAMES, cluster_named
from tunesmith.serving.names import ORGANIZATION, is_base_name, safe_base

MAX_BYTES = 1 << 20
if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[NAMES]  # type checkers take no computed literals


class Section(BaseModel):
    """A part of the file: unknown keys are errors, nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Limits(Section):
    """What a caller may ask for. A request beyond a limit is refused before its body is read to the end."""

    max_file_bytes: PositiveInt = 8 << 30
    """Of one file, whether it comes whole or in parts."""
    max_part_bytes: PositiveInt = 64 << 20
    """Of one part of an upload."""
    max_body_bytes: PositiveInt = 16 << 20
    """Of every other request's body."""
    requests_per_minute: PositiveInt = 600
    """For each key (without keys: for each address); as many may come at once after a pause."""
    request_timeout_s: PositiveFloat = 60.0
    """In which a body must have arrived, and between two pieces of a file's body."""
    upload_timeout_s: PositiveFloat = 3600.0
    """In which the body of a whole file must have arrived."""
    max_concurrent_generations: PositiveInt = 32
    """Answers that the inference engine writes at once; more wait their turn."""
    generation_timeout_s: PositiveFloat = 600.0
    """In which an answer must be whole, waiting for its turn included."""


class Webhook(Section):
    url: Annotated[str, Field(pattern=r"^https?://")]
    secret: Annotated[str, Field(min_length=16)]
    """`whsec_` and base64, or any text; what the receiver gives to `client.webhooks.unwrap`."""

    @field_validator("secret")
    @classmethod
    def _is_a_secret(cls, secret: str) -> str:
        try:
            base64.b64decode(secret[6:] if secret.startswith("whsec_") else "")
        except ValueError:
            raise ValueError("behind `whsec_` there must be base64") from None
        return secret


class Settings(Section):
    home: Path = Path("~/.tunesmith/server")
    """Where the server keeps what it must not lose: the store, files, runs, logs."""
    host: str = "127.0.0.1"
    """Beyond loopback the server asks for API keys, and does not start where there is none."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8100
    database_url: str | None = None
    """Of SQLAlchemy, such as postgresql+psycopg://user@host/name. Null: SQLite in `home`."""
    files_url: str | None = None
    """Where uploaded bytes lie: a directory, or a URL of fsspec (s3://bucket/prefix). Null: `files` in `home`."""
    bases: dict[str, Path] = {}
    """Models that may be tuned: the name that callers use, and a Hugging Face directory or GGUF file."""
    backend: BackendName = NAMES[0]
    """Where jobs run: a name of launcher/clusters.py."""
    address: str | None = None
    """Of a Ray cluster, or of another that has one."""
    cluster: Path | None = None
    """The file that describes a Slurm cluster. Null: `cluster.yaml` beside this file, for the back end slurm."""
    max_jobs: PositiveInt = 1
    """Jobs that train at once; more wait in the state `queued`."""
    organization: Annotated[str, Field(pattern=f"^{ORGANIZATION.pattern}$")] = "local"
    """Stands in the names of tuned models, and owns what is made without a key."""
    engine: Literal["embedded", "vllm"] = "embedded"
    """What answers chats: this package's own engine, or vLLM, started and fed by the server."""
    engine_url: dict[str, Annotated[str, Field(pattern=r"^https?://")]] = {}
    """Of vLLM servers that run already, by the name of their base. Their key: VLLM_API_KEY of the environment."""
    engine_arguments: tuple[str, ...] = ()
    """Added to `vllm serve` where the server starts it."""
    deidentify: Deidentify | None = None
    """As `data.deidentify` of a recipe: for the rows of every job, and for what is asked of models (needs
    `tunesmith[deidentify]`). Uploaded files stay as they came until they are deleted."""
    limits: Limits = Limits()
    webhooks: tuple[Webhook, ...] = ()
    """Told of every job that succeeds, fails or is cancelled."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    retry_after_s: NonNegativeFloat = 2.0
    """What a caller is told where the inference engine is being started again."""

    @property
    def store_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'store.sqlite3'}"

    @property
    def blobs_url(self) -> str:
        return self.files_url or str(self.home / "files")

    @property
    def runs(self) -> Path:
        """The run directories of the jobs: one a job, named by the job's id."""
        return self.home / "runs"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def on_loopback(self) -> bool:
        return self.host == "localhost" or is_loopback(self.host)


class SettingsOverrides(TypedDict, total=False):
    """Settings from the command line; None leaves what the file says."""

    home: Path | None
    host: str | None
    port: int | None
    bases: Mapping[str, str] | None
    backend: str | None
    max_jobs: int | None
    organization: str | None
    engine: str | None


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(path: Path | None, overrides: SettingsOverrides | None = None) -> Settings:
    """The settings of a file, with what the command line says over it; paths in the file are relative to the file.

    Raises InputError with everything that is wrong: file, line, key.
    """
    tree = _read(path) if path else None
    values = {**(tree.values if tree else {}), **{k: v for k, v in (overrides or {}).items() if v is not None}}
    bases = overrides.get("bases") if overrides else None
    if tree and bases and isinstance(tree.values.get("bases"), dict):
        values["bases"] = {**tree.values["bases"], **bases}
    try:
        settings = Settings.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise _refusal(error, tree, path) from None
    settings = _with_paths(settings, path.parent if path else Path.cwd())
    _check(settings, str(path) if path else "the command line")
    if settings.deidentify is not None:
        deidentified("", settings.deidentify)  # told now where what it needs is not installed
    return settings


def _read(path: Path) -> Tree:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("this file is too large for a server's settings", where=str(path))
        tree = read_tree(path.read_text(encoding="utf-8-sig"), str(path))
    except (NotYaml, UnicodeDecodeError) as error:
        raise InputError(f"the settings are not YAML: {error}", where=str(path)) from None
    except OSError as error:
        raise InputError(f"the settings cannot be read: {error.strerror}", where=str(path)) from None
    if not isinstance(tree.values, dict):
        raise InputError("the settings are no section", where=str(path), remedy="write `key: value` lines into it")
    if tree.problems:
        problem = tree.problems[0]
        raise InputError(problem.what, where=problem.place, remedy=problem.remedy)
    return tree


def _refusal(error: ValidationError, tree: Tree | None, path: Path | None) -> InputError:
    lines = []
    for finding in error.errors(include_url=False, include_input=False):
        what = "no such key" if finding["type"] == "extra_forbidden" else finding["msg"]
        place = f"{tree.place(finding['loc'])}: " if tree else ""
        lines.append(f"  {place}`{key_name(finding['loc'])}`: {what}")
    keys = ", ".join(Settings.model_fields)
    return InputError(
        "the server's settings have problems:\n" + "\n".join(lines),
        where=str(path) if path else "the command line",
        remedy=f"the keys are {keys}",
    )


def _with_paths(settings: Settings, beside: Path) -> Settings:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (beside / path.expanduser()).resolve()

    changed: dict[str, Any] = {name: absolute(getattr(settings, name)) for name in ("home", "cluster")}
    changed |= {name: absolute(getattr(settings, name)) for name in ("tls_cert", "tls_key")}
    if settings.cluster is None and (site := cluster_named(settings.backend).site_file):
        changed["cluster"] = absolute(Path(site))
    changed["bases"] = {name: absolute(path) for name, path in settings.bases.items()}
    if settings.files_url and "://" not in settings.files_url:
        changed["files_url"] = str(absolute(Path(settings.files_url)))
    return settings.model_copy(update=changed)


def _check(settings: Settings, source: str) -> None:
    seen: dict[str, str] = {}
    for name, path in settings.bases.items():
        if not is_base_name(name):
            raise InputError(
                f"{name!r} cannot be the name of a base",
                where=source,
                remedy="use letters, digits, `.`, `_`, `-` and at most one `/`; clients split names on `:`",
            )
        if not path.exists():
            raise InputError(f"the base {name!r} is not there", where=str(path), remedy="check --base NAME=PATH")
        if (other := seen.setdefault(safe_base(name), name)) != name:
            raise InputError(
                f"the bases {other!r} and {name!r} would give tuned models of the same name",
                where=source,
                remedy=f"rename one: both are written {safe_base(name)!r} in the name of a tuned model",
            )
    for name in settings.engine_url:
        if name not in settings.bases:
            raise InputError(f"engine_url names the base {name!r}, which is none of `bases`", where=source)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InputError("TLS needs a certificate and its key", where=source, remedy="give tls_cert and tls_key")
    cluster_named(settings.backend).check_site(str(settings.cluster))  # told now, not to the first job
    for path in (settings.tls_cert, settings.tls_key):
        if path is not None and not path.is_file():
            raise InputError("there is no such file", where=str(path))
    try:
        urlsplit(settings.store_url)
    except ValueError:
        raise InputError("database_url is no URL", where=source) from None
