"""Events: newest first, over several pages, also while new ones arrive; what metrics hold."""

from collections.abc import Mapping

from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tunesmith.serving.conformance.bench import BATCH, EPOCHS, FINAL, TRAIN_ROWS, Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.pages import paged
from tunesmith.serving.conformance.shapes import refused, require_shape

METRICS = ("step", "total_steps", "train_loss", "train_mean_token_accuracy")
VALID = ("valid_loss", "valid_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")
PAGE = 7


def _while_arriving(bench: Bench) -> None:
    """The pages behind the first are read while the job goes on: none is missing, none comes twice."""
    jobs = bench.client.fine_tuning.jobs

    def tells_enough(job: FineTuningJob) -> bool:
        return job.status in FINAL or len(jobs.list_events(job.id, limit=10).data) == 10

    bench.wait(bench.training_id, tells_enough, "the first events of a job")
    read = [event.id for event in paged(jobs.list_events(bench.training_id, limit=2))]
    bench.trained()
    everything = [event.id for event in _all(bench, 50)]
    require(read and read[0] in everything, "the first event that was read is gone later")
    require_equal(read, everything[everything.index(read[0]) :], "what was read while events arrived")


def _newest_first(bench: Bench) -> None:
    bench.trained()
    events = _all(bench, PAGE)
    times = [event.created_at for event in events]
    require(times == sorted(times, reverse=True), "created_at grows from one event to the next: oldest first")
    steps = [_data(event)["step"] for event in events if event.type == "metrics"]
    require(steps == sorted(steps, reverse=True), f"steps grow from one event to the next: {steps[:5]}")


def _pages(bench: Bench) -> None:
    """By hand, as the package does it: `after` the last id until has_more is false; then in one page."""
    job, jobs = bench.trained(), bench.client.fine_tuning.jobs
    pages = [jobs.list_events(job.id, limit=PAGE)]
    seen: set[str] = set()
    while pages[-1].data:
        require(seen.isdisjoint(event.id for event in pages[-1].data), "an event stands on two pages")
        seen.update(event.id for event in pages[-1].data)
        following = jobs.list_events(job.id, limit=PAGE, after=pages[-1].data[-1].id)
        require(len(pages[-1].data) <= PAGE, f"limit={PAGE} gives {len(pages[-1].data)} events")
        require_equal(pages[-1].has_more, bool(following.data), f"has_more of page {len(pages)}")
        pages.append(following)
    ids = [event.id for page in pages for event in page.data]
    require(len(pages) > 3, f"there are {len(ids)} events: too few for several pages")
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
    require(measured, "there is no event of the type metrics")
    for data in measured:
        wrong = [name for name in METRICS if not isinstance(data.get(name), (int, float))]
        require(not wrong, f"step {data.get('step')}: {wrong[:1]} is {data.get(wrong[0]) if wrong else None!r}")
        require(0 <= data["train_mean_token_accuracy"] <= 1, f"an accuracy is {data['train_mean_token_accuracy']}")
    steps = sorted(data["step"] for data in measured)
    require(len(set(steps)) == len(steps), "a step is told twice")
    if bench.is_own_job:
        require_equal(steps, list(range(1, EPOCHS * TRAIN_ROWS // BATCH + 1)), "the steps")
    if job.validation_file:
        valid = [data for data in measured if "valid_loss" in data]
        require(valid, "with a validation file, no event tells a valid_loss")
        wrong = [name for name in VALID if not any(isinstance(data.get(name), (int, float)) for data in valid)]
        require(not wrong, f"with a validation file, no event tells {', '.join(wrong)}")


def _unknown(bench: Bench) -> None:
    nothing = "ftjob-thereisnosuchjobhere00"
    jobs = bench.strict.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        refused(lambda c=call: c(nothing), 404, code="fine_tune_not_found")


def _all(bench: Bench, limit: int) -> list[FineTuningJobEvent]:
    return paged(bench.client.fine_tuning.jobs.list_events(bench.training_id, limit=limit))


def _data(event: FineTuningJobEvent) -> Mapping[str, float]:
    if not isinstance(event.data, dict):
        raise Broken(f"the data of the event {event.id} is {event.data!r}")
    return event.data


ARRIVING = Check(
    "events: while they arrive",
    "ids stable, order stable while rows arrive: no event twice, none lost",
    _while_arriving,
    True,
)
CHECKS = (
    Check("events: newest first", "GET .../events: newest first", _newest_first, True),
    Check("events: pages", "`after` is exclusive; `has_more` is false on the last page only; limit (20)", _pages, True),
    Check("events: object", "id (`ftevent-`), created_at, level, message, type, data", _object, True),
    Check("events: metrics", "step, total_steps, losses and accuracies; validation where measured", _metrics, True),
    Check("jobs: unknown", "unknown job: 404 with code `fine_tune_not_found`", _unknown),
)
