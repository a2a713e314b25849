"""The event log: every kind and version of a line, torn lines, full disks, concurrent readers."""

import errno
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.event_lines import an_event
from tunesmith.rundir.event_log import EventFollower, EventLog, read_events
from tunesmith.rundir.events import (
    EVENT_TYPES,
    EndEvent,
    ErrorEvent,
    EvaluationEvent,
    Event,
    Scores,
    StartEvent,
    StepEvent,
    UnknownEvent,
    event_of,
    parse_event,
)
from tunesmith.rundir.json_lines import finite_json

RECORDED = Path(__file__).parent / "recorded" / "events-cf466db.jsonl"
"""Written by version cf466db: a run with early stopping, general rows, few-shot scores, a mirror, a kill and a damaged
checkpoint, first on one rank, then on two."""


def steps(events: Iterable[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepEvent)]


def test_events_are_read_in_order_and_by_type(tmp_path):
    path = tmp_path / "deep" / "events.jsonl"
    log = EventLog(path)
    log.write(an_event("start", attempt=1, step=0))
    written = [log.write(an_event("step", step=step, loss=1 / step)) for step in (1, 2, 3)]
    log.write(an_event("end", outcome="done", step=3))
    log.sync()
    log.close()
    assert [event.kind for event in read_events(path)] == ["start", "step", "step", "step", "end"]
    assert list(read_events(path, StepEvent)) == written
    assert [type(event) for event in read_events(path, StartEvent, EndEvent)] == [StartEvent, EndEvent]
    assert written[2].loss == 1 / 3, "a float round-trips exactly"
    assert all(event.time is not None for event in read_events(path))


def test_a_log_of_an_earlier_version_is_written_back_byte_for_byte(tmp_path):
    events = list(read_events(RECORDED))
    kinds = {event.kind for event in events}
    assert kinds >= EVENT_TYPES.keys() - {"warning", "model_proof", "tracker"}  # the last two are newer
    assert not any(isinstance(event, UnknownEvent) or event.extra or event.absent for event in events)
    log = EventLog(tmp_path / "e")
    for event in events:
        log.write(event)
    assert (tmp_path / "e").read_bytes() == RECORDED.read_bytes()


def test_scores_are_inlined_among_the_fields_of_their_event():
    scores = Scores.from_json({"loss": 1.5, "loss_error": None, "classification": {"metrics": {"accuracy": 0.5}}})
    event = EvaluationEvent(step=4, scores=scores, seconds=2.0, best=True, when="during", time=9.0)
    text = (
        '{"time": 9.0, "kind": "evaluation", "step": 4, "loss": 1.5, "loss_error": null, '
        '"classification": {"metrics": {"accuracy": 0.5}}, "seconds": 2.0, "best": true, "when": "during"}'
    )
    assert json.dumps(event.to_json()) == text
    assert parse_event(text) == event
    assert event.scores.perplexity is None
    assert event.scores.of_task("classification") == {"metrics": {"accuracy": 0.5}}


def test_unknown_fields_and_kinds_are_preserved():
    later = {"time": 1.0, "kind": "step", "step": 3, "loss": "high", "colour": "red"}
    event = event_of(later)
    assert isinstance(event, StepEvent)
    assert (event.step, event.loss, event.epoch) == (3, None, None)
    assert event.to_json() == later
    for unknown in ({"kind": "telemetry", "value": [1]}, {"kind": "step", "step": "one", "loss": 2.0}):
        event = event_of(unknown)
        assert isinstance(event, UnknownEvent)
        assert event.kind == unknown["kind"]
        assert event.to_json() == unknown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({name for kind in EVENT_TYPES.values() for name in kind.__dataclass_fields__} - {"extra", "absent"})
LINES = st.builds(
    lambda kind, fields, step: {"kind": kind, **fields, **step},
    st.sampled_from([*EVENT_TYPES, "later"]),
    st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=8),
    st.just({}) | st.fixed_dictionaries({"step": st.integers(0, 99)}),
).filter(lambda line: isinstance(line["kind"], str))


@settings(deadline=None)
@given(LINES)
def test_any_line_round_trips(line):
    """Lines of any version, task or damaged disk keep exactly their fields and values."""
    text = json.dumps(finite_json(line))
    event = parse_event(text)
    assert event is not None
    assert event.to_json() == json.loads(text)
    assert parse_event(json.dumps(event.to_json())) is not None


def test_non_finite_numbers_are_written_as_valid_json_at_any_depth(tmp_path):
    log = EventLog(tmp_path / "e")
    nested = {"a": [-math.inf, (1.0, math.nan)]}
    log.write(an_event("step", step=1, loss=math.nan, grad_norm=math.inf, nested=nested))

    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "e").read_text(), parse_constant=reject)
    assert (line["loss"], line["grad_norm"], line["nested"]) == ("nan", "inf", {"a": ["-inf", [1.0, "nan"]]})
    (event,) = read_events(tmp_path / "e", StepEvent)
    assert math.isnan(event.loss or 0.0)
    assert event.grad_norm == math.inf


def test_a_torn_line_does_not_affect_other_lines(tmp_path):
    path = tmp_path / "e"
    log = EventLog(path)
    log.write(an_event("step", step=1))
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"time":1.0,"kind":"step","step":2,"lo')
    assert steps(read_events(path)) == [1]
    log = EventLog(path)
    log.write(an_event("step", step=3))
    assert steps(read_events(path)) == [1, 3]


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_truncated_log_gives_the_events_before_the_cut(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "e"
    log = EventLog(path)
    ends = []
    for step in range(1, 6):
        log.write(an_event("step", step=step, note="zwölf 漢字 " * step))
        ends.append(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:cut])
    # a line that lacks only its newline is complete
    whole = [step for step, end in enumerate(ends, 1) if end - 1 <= cut]
    assert steps(read_events(path)) == whole
    EventLog(path).write(an_event("step", step=99))
    assert steps(read_events(path)) == [*whole, 99]


def test_a_full_disk_raises_and_logging_continues_once_there_is_space(tmp_path):
    with pytest.raises(OSError) as caught:
        EventLog(Path("/dev/full")).write(an_event("step", step=1))
    assert caught.value.errno == errno.ENOSPC
    # A real short write: the kernel writes only what fits below the limit.
    script = """
import resource, sys
from pathlib import Path
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.events import event_of
log, failed = EventLog(Path(sys.argv[1])), []
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(1, 31):
    try:
        log.write(event_of({"kind": "step", "step": step}))
    except OSError as error:
        failed.append(step)
    if step == 25:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(failed)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "e")], capture_output=True, text=True, check=True
    )
    failed = json.loads(done.stdout)
    assert failed
    assert failed == list(range(failed[0], 26))
    assert steps(read_events(tmp_path / "e")) == [step for step in range(1, 31) if step not in failed]


def test_damage_in_the_middle_loses_only_the_damaged_line(tmp_path):
    path = tmp_path / "e"
    log = EventLog(path)
    for step in (1, 2, 3):
        log.write(an_event("step", step=step))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff\xfe\x00" + lines[1][3:]
    path.write_bytes(b"\n".join(lines) + b"[1]\n12\nnull\n\n{}\n")
    assert steps(read_events(path)) == [1, 3]


def test_text_of_any_kind_round_trips(tmp_path):
    log = EventLog(tmp_path / "e")
    hostile = 'line\nbreak\r\n "quotes" \u2028 \x00 \udc80 </script> 漢'
    log.write(ErrorEvent(what=hostile, where=None, remedy=""))
    (event,) = read_events(tmp_path / "e", ErrorEvent)
    assert event.what == hostile
    assert (tmp_path / "e").read_bytes().count(b"\n") == 1


def test_a_missing_log_is_empty(tmp_path):
    assert list(read_events(tmp_path / "none")) == []
    assert EventFollower(tmp_path / "none").new() == []


def test_a_follower_returns_each_event_once_and_waits_for_partial_lines(tmp_path):
    path = tmp_path / "e"
    follower = EventFollower(path)
    assert follower.new() == []
    log = EventLog(path)
    log.write(an_event("step", step=1))
    assert steps(follower.new()) == [1]
    assert follower.new() == []
    line = b'{"time":1,"kind":"step","step":2,"name":"\xc3\xbc"}\n'
    for cut in range(len(line)):
        with open(path, "ab") as file:
            file.write(line[cut : cut + 1])
        assert steps(follower.new()) == ([2] if cut == len(line) - 1 else [])
    log.write(an_event("step", step=3))
    late = EventFollower(path, from_end=True)
    log.write(an_event("step", step=4))
    assert steps(follower.new()) == [3, 4]
    assert steps(late.new()) == [4]


def test_readers_see_complete_events_while_two_processes_write(tmp_path):
    path = tmp_path / "e"
    script = """
import sys
from pathlib import Path
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.events import event_of
log = EventLog(Path(sys.argv[1]))
for step in range(300):
    log.write(event_of({"kind": "step", "step": step, "writer": sys.argv[2], "text": "x" * (step % 97) * 40}))
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    follower, seen = EventFollower(path), []
    while any(writer.poll() is None for writer in writers):
        seen += follower.new()
    seen += follower.new()
    assert [writer.returncode for writer in writers] == [0, 0]
    for name in "ab":
        assert [event.step for event in seen if event.extra["writer"] == name] == list(range(300))
    assert list(read_events(path)) == seen


def test_only_objects_with_a_kind_are_events():
    assert parse_event('{"kind":"end"}') == an_event("end")
    for line in ("", "x", "[]", "3", '{"time":1}', '{"kind":5}', '{"kind":"end"'):
        assert parse_event(line) is None


@pytest.mark.parametrize("code", [None, "gradient_zero", "a_code_of_a_later_version", 7])
def test_an_error_keeps_its_code_also_if_it_is_unknown_or_missing(code):
    line = {"time": 1.0, "kind": "error", "what": "a", "where": "b", "remedy": "c"}
    line |= {} if code is None else {"code": code}
    event = event_of(line)
    assert isinstance(event, ErrorEvent)
    assert event.code == (code if isinstance(code, str) else None)
    assert event.to_json() == line
