"""Server settings: a YAML file and the command-line options that override it."""

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

from tunesmith.configs.sections.data import Deidentify
from tunesmith.configs.yaml_tree import InvalidYaml, Tree, key_name, read_tree
from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.errors import InputError
from tunesmith.launcher.clusters import NAMES, cluster_named
from tunesmith.serving.names import ORGANIZATION, is_base_name, safe_base

MAX_BYTES = 1 << 20
if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[NAMES]  # type checkers reject computed literals


class Section(BaseModel):
    """A section of the file: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Limits(Section):
    """Request limits. A body over its limit is rejected before all of it is read."""

    max_file_bytes: PositiveInt = 8 << 30
    """Size of a file, uploaded whole or in parts."""
    max_part_bytes: PositiveInt = 64 << 20
    """Size of one part of an upload."""
    max_body_bytes: PositiveInt = 16 << 20
    """Size of every other request body."""
    requests_per_minute: PositiveInt = 600
    """Rate limit for each key (without keys: for each address); also the size of a burst."""
    request_timeout_s: PositiveFloat = 60.0
    """Time to receive a request body; for a file, the time between two chunks."""
    upload_timeout_s: PositiveFloat = 3600.0
    """Time to receive the body of a whole file."""
    max_concurrent_generations: PositiveInt = 32
    """Requests that the inference engine processes at once; more are queued."""
    generation_timeout_s: PositiveFloat = 600.0
    """Time to complete a generation, including its time in the queue."""


class Webhook(Section):
    url: Annotated[str, Field(pattern=r"^https?://")]
    secret: Annotated[str, Field(min_length=16)]
    """`whsec_` and base64, or any text; the receiver passes it to `client.webhooks.unwrap`."""

    @field_validator("secret")
    @classmethod
    def _is_a_secret(cls, secret: str) -> str:
        try:
            base64.b64decode(secret[6:] if secret.startswith("whsec_") else "")
        except ValueError:
            raise ValueError("`whsec_` must be followed by base64") from None
        return secret


class Settings(Section):
    home: Path = Path("~/.tunesmith/server")
    """Directory of everything the server stores: the database, files, runs, logs."""
    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback every request needs an API key, and at least one key must exist."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8100
    database_url: str | None = None
    """SQLAlchemy URL, such as postgresql+psycopg://user@host/name. Null: SQLite in `home`."""
    files_url: str | None = None
    """Storage of uploaded files: a directory or an fsspec URL (s3://bucket/prefix). Null: `files` in `home`."""
    bases: dict[str, Path] = {}
    """Base models: the name in the API, and a Hugging Face directory or GGUF file."""
    backend: BackendName = NAMES[0]
    """Back end that runs the jobs: a name of launcher/clusters.py."""
    address: str | None = None
    """Address of the Ray cluster, or of another back end that has one."""
    cluster: Path | None = None
    """Site file of the Slurm cluster. Null: `cluster.yaml` in the directory of this file, for the back end slurm."""
    max_jobs: PositiveInt = 1
    """Limit of jobs that train at once; more stay in the state `queued`."""
    organization: Annotated[str, Field(pattern=f"^{ORGANIZATION.pattern}$")] = "local"
    """Part of the names of tuned models; owner of everything created without a key."""
    engine: Literal["embedded", "vllm"] = "embedded"
    """Inference engine: the built-in one, or vLLM, started and managed by the server."""
    engine_url: dict[str, Annotated[str, Field(pattern=r"^https?://")]] = {}
    """URLs of running vLLM servers, by base name. Their API key: the environment variable VLLM_API_KEY."""
    engine_arguments: tuple[str, ...] = ()
    """Extra arguments of `vllm serve` when this server starts it."""
    split_special_tokens: bool = True
    """Same as `data.split_special_tokens` of a recipe, for the rows of every job and for inference requests: special
    tokens in system, user and tool messages and in prompts are text. false: they become control tokens."""
    deidentify: Deidentify | None = None
    """Same section as `data.deidentify` of a recipe: applied to the rows of every job and to inference requests
    (needs `tunesmith[deidentify]`). Uploaded files are stored unchanged until they are deleted."""
    limits: Limits = Limits()
    webhooks: tuple[Webhook, ...] = ()
    """Receivers of an event for every job that succeeds, fails or is cancelled."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    retry_after_s: NonNegativeFloat = 2.0
    """`Retry-After` of responses while the inference engine restarts."""

    @property
    def store_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'store.sqlite3'}"

    @property
    def blobs_url(self) -> str:
        return self.files_url or str(self.home / "files")

    @property
    def runs(self) -> Path:
        """The run directories of the jobs, one per job, named by the job's id."""
        return self.home / "runs"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def on_loopback(self) -> bool:
        return self.host == "localhost" or is_loopback(self.host)


class SettingsOverrides(TypedDict, total=False):
    """Settings from the command line; None keeps the value of the file."""

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
    """Load the settings of a file and apply the command-line overrides. Paths in the file are relative to the file.

    Raises InputError that lists every problem with file, line and key.
    """
    tree = _read(path) if path else None
    values = {**(tree.values if tree else {}), **{k: v for k, v in (overrides or {}).items() if v is not None}}
    bases = overrides.get("bases") if overrides else None
    if tree and bases and isinstance(tree.values.get("bases"), dict):
        values["bases"] = {**tree.values["bases"], **bases}
    try:
        settings = Settings.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise _invalid_settings(error, tree, path) from None
    settings = _with_paths(settings, path.parent if path else Path.cwd())
    _check(settings, str(path) if path else "the command line")
    if settings.deidentify is not None:
        deidentified("", settings.deidentify)  # fails now if a required package is not installed
    return settings


def _read(path: Path) -> Tree:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("this file is too large for a server's settings", where=str(path))
        tree = read_tree(path.read_text(encoding="utf-8-sig"), str(path))
    except (InvalidYaml, UnicodeDecodeError) as error:
        raise InputError(f"the settings are not YAML: {error}", where=str(path)) from None
    except OSError as error:
        raise InputError(f"the settings cannot be read: {error.strerror}", where=str(path)) from None
    if not isinstance(tree.values, dict):
        raise InputError("the settings are not a mapping", where=str(path), remedy="write `key: value` lines")
    if tree.problems:
        problem = tree.problems[0]
        raise InputError(problem.what, where=problem.place, remedy=problem.remedy)
    return tree


def _invalid_settings(error: ValidationError, tree: Tree | None, path: Path | None) -> InputError:
    lines = []
    for finding in error.errors(include_url=False, include_input=False):
        what = "no such key" if finding["type"] == "extra_forbidden" else finding["msg"]
        place = f"{tree.place(finding['loc'])}: " if tree else ""
        lines.append(f"  {place}`{key_name(finding['loc'])}`: {what}")
    keys = ", ".join(Settings.model_fields)
    return InputError(
        "invalid server settings:\n" + "\n".join(lines),
        where=str(path) if path else "the command line",
        remedy=f"valid keys: {keys}",
    )


def _with_paths(settings: Settings, directory: Path) -> Settings:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (directory / path.expanduser()).resolve()

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
                f"{name!r} is not a valid name of a base",
                where=source,
                remedy="use letters, digits, `.`, `_`, `-` and at most one `/`; clients split names on `:`",
            )
        if not path.exists():
            raise InputError(f"the base {name!r} does not exist", where=str(path), remedy="check --base NAME=PATH")
        if (other := seen.setdefault(safe_base(name), name)) != name:
            raise InputError(
                f"the bases {other!r} and {name!r} would produce tuned models with the same name",
                where=source,
                remedy=f"rename one: both become {safe_base(name)!r} in the name of a tuned model",
            )
    for name in settings.engine_url:
        if name not in settings.bases:
            raise InputError(f"engine_url names the base {name!r}, which is not in `bases`", where=source)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InputError("TLS needs a certificate and its key", where=source, remedy="set both tls_cert and tls_key")
    cluster_named(settings.backend).check_site(str(settings.cluster))  # fails now, not with the first job
    for path in (settings.tls_cert, settings.tls_key):
        if path is not None and not path.is_file():
            raise InputError("file not found", where=str(path))
    try:
        urlsplit(settings.store_url)
    except ValueError:
        raise InputError("database_url is not a URL", where=source) from None
