"""Events: order, pagination, also while new events arrive, and metrics."""

from collections.abc import Mapping

from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tunesmith.serving.conformance.bench import BATCH, EPOCHS, FINAL, TRAIN_ROWS, Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.pages import paged
from tunesmith.serving.conformance.shapes import expect_error, require_shape

METRICS = ("step", "total_steps", "train_loss", "train_mean_token_accuracy")
VALID = ("valid_loss", "valid_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")
PAGE = 7


def _while_arriving(bench: Bench) -> None:
    """Pages are read while the job continues: no event is missing or repeated."""
    jobs = bench.client.fine_tuning.jobs

    def has_enough_events(job: FineTuningJob) -> bool:
        return job.status in FINAL or len(jobs.list_events(job.id, limit=10).data) == 10

    bench.wait(bench.training_id, has_enough_events, "the first events of a job")
    ids = [event.id for event in paged(jobs.list_events(bench.training_id, limit=2))]
    bench.trained()
    all_ids = [event.id for event in _all(bench, 50)]
    require(ids and ids[0] in all_ids, "the newest event is missing later")
    require_equal(ids, all_ids[all_ids.index(ids[0]) :], "the events read while new ones arrived")


def _newest_first(bench: Bench) -> None:
    bench.trained()
    events = _all(bench, PAGE)
    times = [event.created_at for event in events]
    require(times == sorted(times, reverse=True), "events are listed oldest first")
    steps = [_data(event)["step"] for event in events if event.type == "metrics"]
    require(steps == sorted(steps, reverse=True), f"steps are listed in ascending order: {steps[:5]}")


def _pages(bench: Bench) -> None:
    """Paginate manually with `after` until has_more is false, then compare with a single page."""
    job, jobs = bench.trained(), bench.client.fine_tuning.jobs
    pages = [jobs.list_events(job.id, limit=PAGE)]
    seen: set[str] = set()
    while pages[-1].data:
        require(seen.isdisjoint(event.id for event in pages[-1].data), "an event is on two pages")
        seen.update(event.id for event in pages[-1].data)
        next_page = jobs.list_events(job.id, limit=PAGE, after=pages[-1].data[-1].id)
        require(len(pages[-1].data) <= PAGE, f"limit={PAGE} returned {len(pages[-1].data)} events")
        require_equal(pages[-1].has_more, bool(next_page.data), f"has_more of page {len(pages)}")
        pages.append(next_page)
    ids = [event.id for page in pages for event in page.data]
    require(len(pages) > 3, f"only {len(ids)} events: too few for several pages")
    require_equal([event.id for event in _all(bench, 100)], ids, "the events in one page")
    require_equal(len(jobs.list_events(job.id).data), min(20, len(ids)), "the number of events without a limit")


def _object(bench: Bench) -> None:
    bench.trained()
    for event in _all(bench, 100):
        require_shape(event, ("type", "data"))
        require(event.id.startswith("ftevent-"), f"the id is {event.id!r}")
        require(event.message, f"the event {event.id} has no message")


def _metrics(bench: Bench) -> None:
    job = bench.trained()
    measured = [_data(event) for event in _all(bench, 100) if event.type == "metrics"]
    require(measured, "no event of the type metrics")
    for data in measured:
        missing = [name for name in METRICS if not isinstance(data.get(name), (int, float))]
        require(not missing, f"step {data.get('step')}: {missing[:1]} is {data.get(missing[0]) if missing else None!r}")
        require(0 <= data["train_mean_token_accuracy"] <= 1, f"an accuracy is {data['train_mean_token_accuracy']}")
    steps = sorted(data["step"] for data in measured)
    require(len(set(steps)) == len(steps), "a step is reported twice")
    if bench.is_own_job:
        require_equal(steps, list(range(1, EPOCHS * TRAIN_ROWS // BATCH + 1)), "the steps")
    if job.validation_file:
        valid = [data for data in measured if "valid_loss" in data]
        require(valid, "with a validation file, no event has a valid_loss")
        missing = [name for name in VALID if not any(isinstance(data.get(name), (int, float)) for data in valid)]
        require(not missing, f"with a validation file, no event has {', '.join(missing)}")


def _unknown(bench: Bench) -> None:
    unknown = "ftjob-thereisnosuchjobhere00"
    jobs = bench.strict.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        expect_error(lambda c=call: c(unknown), 404, code="fine_tune_not_found")


def _all(bench: Bench, limit: int) -> list[FineTuningJobEvent]:
    return paged(bench.client.fine_tuning.jobs.list_events(bench.training_id, limit=limit))


def _data(event: FineTuningJobEvent) -> Mapping[str, float]:
    if not isinstance(event.data, dict):
        raise Broken(f"the data of the event {event.id} is {event.data!r}")
    return event.data


ARRIVING = Check(
    "events: while they arrive",
    "stable ids and order while events arrive: no event missing or repeated",
    _while_arriving,
    True,
)
CHECKS = (
    Check("events: newest first", "GET .../events: newest first", _newest_first, True),
    Check("events: pages", "`after` is exclusive; `has_more` is false on the last page only; limit (20)", _pages, True),
    Check("events: object", "id (`ftevent-`), created_at, level, message, type, data", _object, True),
    Check(
        "events: metrics", "step, total_steps, losses and accuracies; validation metrics if evaluated", _metrics, True
    ),
    Check("jobs: unknown", "404 with code `fine_tune_not_found`", _unknown),
)
