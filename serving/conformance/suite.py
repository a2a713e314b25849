"""The whole suite against one server: in which order, and what is made of a check's end."""

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
from tunesmith.serving.conformance.outcome import Broken, LeftOut, NotSupported

CHECKS: tuple[Check, ...] = (
    events.ARRIVING,  # first: the job must still train
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
    url: str, key: str, base: str | None, *, say: Callable[[str], None], wait_s: float, job: str | None
) -> Bench:
    """Raises InputError where no server of this kind answers, or it has no base."""
    url = url.rstrip("/") if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1"
    try:
        models = OpenAI(base_url=url, api_key=key, timeout=30, max_retries=1).models.list().data
    except APIConnectionError as error:
        raise InputError(f"no server answers: {error.__cause__ or error}", where=url, remedy="check URL") from None
    except APIStatusError as error:
        remedy = "give a key of this server: --key" if error.status_code in (401, 403) else "check URL"
        raise InputError(f"the server answers {error.status_code} to GET /models", where=url, remedy=remedy) from None
    except (OpenAIError, ValueError, AttributeError) as error:
        raise InputError(f"this is no server of the OpenAI API: {error}", where=url, remedy="check URL") from None
    known = [model.id for model in models or [] if not model.id.startswith("ft:")]
    if base is None and not known:
        raise InputError("the server has no base model", where=url, remedy="name one that it can tune: --base NAME")
    return Bench(url, key, base or known[0], say=say, wait_s=wait_s, job=job)


def run(bench: Bench, checks: Sequence[Check] = CHECKS, *, quick: bool = False) -> Iterable[Finding]:
    """Findings as they come. quick: without the checks that train. The caller cleans up (`bench.clean_up`)."""
    if not quick and any(check.trains for check in checks):
        try:
            bench.begin_training()
        except Exception as error:
            bench.say(f"no job was made: {_words(error)}")
    for check in checks:
        if quick and check.trains:
            yield Finding(check.name, check.line, "left out", "--quick")
        else:
            yield _finding(check, bench)


def _finding(check: Check, bench: Bench) -> Finding:
    bench.say(check.name)
    try:
        check.run(bench)
    except NotSupported as answer:
        return Finding(check.name, check.line, "not supported", str(answer))
    except LeftOut as reason:
        return Finding(check.name, check.line, "left out", str(reason))
    except Exception as error:  # whatever the client or the check stumbles over, the server sent
        return Finding(check.name, check.line, "broken", _words(error))
    return Finding(check.name, check.line, "holds")


def _words(error: Exception) -> str:
    if isinstance(error, Broken):
        return str(error)
    if isinstance(error, APIStatusError):
        return f"{error.request.method} {error.request.url.path} answers {error.status_code}: {error.message}"
    if isinstance(error, APIConnectionError):
        return f"{error.request.method} {error.request.url.path}: {error.__cause__ or error}"
    return f"the client fails with {type(error).__name__}: {error}"
