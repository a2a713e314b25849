"""The conformance suite: order of the checks, and their outcomes."""

from collections.abc import Callable, Iterable, Sequence

from openai import APIConnectionError, APIStatusError, OpenAI, OpenAIError

from tunesmith.errors import InputError
from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, Finding
from tunesmith.serving.conformance.checks import (
    bad_files,
    chat,
    completions,
    create,
    errors,
    events,
    files,
    jobs,
    models,
    streaming,
    tuned,
)
from tunesmith.serving.conformance.outcome import Broken, NotSupported, Skipped

CHECKS: tuple[Check, ...] = (
    events.ARRIVING,  # first: the job must still be training
    *files.CHECKS,
    *errors.CHECKS,
    *models.CHECKS,
    *create.CHECKS,
    *bad_files.CHECKS,
    *jobs.CHECKS,
    *events.CHECKS,
    *tuned.CHECKS,
    *chat.CHECKS,
    *streaming.CHECKS,
    *completions.CHECKS,
    tuned.DELETE,  # last: the others need the model
)


def open_bench(
    url: str, key: str, base: str | None, *, log: Callable[[str], None], wait_s: float, job: str | None
) -> Bench:
    """Connect to a server. Raises InputError if it is unreachable, is not OpenAI-compatible or has no base model."""
    url = url.rstrip("/") if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1"
    try:
        models = OpenAI(base_url=url, api_key=key, timeout=30, max_retries=1).models.list().data
    except APIConnectionError as error:
        raise InputError(
            f"cannot reach the server: {error.__cause__ or error}", where=url, remedy="check URL"
        ) from None
    except APIStatusError as error:
        remedy = "pass an API key of this server: --key" if error.status_code in (401, 403) else "check URL"
        raise InputError(f"GET /models returned {error.status_code}", where=url, remedy=remedy) from None
    except (OpenAIError, ValueError, AttributeError) as error:
        raise InputError(f"not an OpenAI-compatible API: {error}", where=url, remedy="check URL") from None
    bases = [model.id for model in models or [] if not model.id.startswith("ft:")]
    if base is None and not bases:
        raise InputError(
            "the server has no base model", where=url, remedy="name a model that it can fine-tune: --base NAME"
        )
    return Bench(url, key, base or bases[0], log=log, wait_s=wait_s, job=job)


def run(bench: Bench, checks: Sequence[Check] = CHECKS, *, quick: bool = False) -> Iterable[Finding]:
    """Run the checks and yield their findings. quick: skip checks that train. The caller calls `bench.clean_up`."""
    if not quick and any(check.trains for check in checks):
        try:
            bench.begin_training()
        except Exception as error:
            bench.log(f"no job was created: {_message(error)}")
    for check in checks:
        if quick and check.trains:
            yield Finding(check.name, check.line, "left out", "--quick")
        else:
            yield _finding(check, bench)


def _finding(check: Check, bench: Bench) -> Finding:
    bench.log(check.name)
    try:
        check.run(bench)
    except NotSupported as reason:
        return Finding(check.name, check.line, "not supported", str(reason))
    except Skipped as reason:
        return Finding(check.name, check.line, "left out", str(reason))
    except Exception as error:  # any failure of the client or the check is caused by the server
        return Finding(check.name, check.line, "broken", _message(error))
    return Finding(check.name, check.line, "holds")


def _message(error: Exception) -> str:
    if isinstance(error, Broken):
        return str(error)
    if isinstance(error, APIStatusError):
        return f"{error.request.method} {error.request.url.path} returned {error.status_code}: {error.message}"
    if isinstance(error, APIConnectionError):
        return f"{error.request.method} {error.request.url.path}: {error.__cause__ or error}"
    return f"the client raised {type(error).__name__}: {error}"
