"""The event log: torn lines, full disks, readers beside a writer, numbers that JSON does not know."""

import errno
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.rundir.events import KINDS, EventFollower, EventLog, parse_event, read_events


def steps(events) -> list[int]:
    return [event["step"] for event in events if event["kind"] == "step"]


def test_what_was_written_is_read_in_order_and_by_kind(tmp_path):
    log = EventLog(tmp_path / "deep" / "events.jsonl")
    log.write("start", attempt=1, step=0)
    for step in (1, 2, 3):
        event = log.write("step", step=step, loss=1 / step)
    log.write("end", outcome="done", step=3)
    log.sync()
    log.close()
    path = tmp_path / "deep" / "events.jsonl"
    assert [e["kind"] for e in read_events(path)] == ["start", "step", "step", "step", "end"]
    assert steps(read_events(path, "step", "end")) == [1, 2, 3]
    assert list(read_events(path, "step"))[-1] == event
    assert event["loss"] == 1 / 3, "a float comes back to the last bit"


def test_an_unknown_kind_is_refused_and_leaves_no_line(tmp_path):
    log = EventLog(tmp_path / "e")
    with pytest.raises(ValueError, match=r"unknown event kind 'stepp'.*step"):
        log.write("stepp", step=1)
    assert (tmp_path / "e").read_bytes() == b""


def test_numbers_that_are_not_finite_stay_readable_json_at_any_depth(tmp_path):
    log = EventLog(tmp_path / "e")
    log.write("step", step=1, loss=math.nan, grad_norm=math.inf, nested={"a": [-math.inf, (1.0, math.nan)]})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    event = json.loads((tmp_path / "e").read_text(), parse_constant=refuse)
    assert (event["loss"], event["grad_norm"], event["nested"]) == ("nan", "inf", {"a": ["-inf", [1.0, "nan"]]})
    assert math.isnan(float(event["loss"]))
    assert float(event["grad_norm"]) == math.inf


def test_a_line_torn_by_a_crash_is_lost_alone(tmp_path):
    path = tmp_path / "e"
    log = EventLog(path)
    log.write("step", step=1)
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"time":1.0,"kind":"step","step":2,"lo')
    assert steps(read_events(path)) == [1]
    log = EventLog(path)
    log.write("step", step=3)
    assert steps(read_events(path)) == [1, 3]


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_log_cut_anywhere_gives_the_events_before_the_cut(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "e"
    log = EventLog(path)
    ends = []
    for step in range(1, 6):
        log.write("step", step=step, note="zwölf 漢字 " * step)
        ends.append(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:cut])
    # a line that lacks only its newline is whole
    whole = [step for step, end in enumerate(ends, 1) if end - 1 <= cut]
    assert steps(read_events(path)) == whole
    EventLog(path).write("step", step=99)
    assert steps(read_events(path)) == [*whole, 99]


def test_a_full_disk_raises_and_the_log_goes_on_when_there_is_room(tmp_path):
    with pytest.raises(OSError) as caught:
        EventLog(Path("/dev/full")).write("step", step=1)
    assert caught.value.errno == errno.ENOSPC
    # A real short write: the kernel takes what fits below the limit and no more.
    script = """
import resource, sys
from pathlib import Path
from tunesmith.rundir.events import EventLog
log, failed = EventLog(Path(sys.argv[1])), []
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(1, 31):
    try:
        log.write("step", step=step)
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


def test_damage_in_the_middle_costs_its_own_line_only(tmp_path):
    path = tmp_path / "e"
    log = EventLog(path)
    for step in (1, 2, 3):
        log.write("step", step=step)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff\xfe\x00" + lines[1][3:]
    path.write_bytes(b"\n".join(lines) + b"[1]\n12\nnull\n\n{}\n")
    assert steps(read_events(path)) == [1, 3]


def test_text_of_any_kind_survives(tmp_path):
    log = EventLog(tmp_path / "e")
    hostile = 'line\nbreak\r\n "quotes" \u2028 \x00 \udc80 </script> 漢'
    log.write("error", what=hostile, where=None, remedy="")
    (event,) = read_events(tmp_path / "e")
    assert event["what"] == hostile
    assert (tmp_path / "e").read_bytes().count(b"\n") == 1


def test_a_missing_log_is_empty(tmp_path):
    assert list(read_events(tmp_path / "none")) == []
    assert EventFollower(tmp_path / "none").new() == []


def test_a_follower_sees_each_event_once_and_waits_for_half_lines(tmp_path):
    path = tmp_path / "e"
    follower = EventFollower(path)
    assert follower.new() == []
    log = EventLog(path)
    log.write("step", step=1)
    assert steps(follower.new()) == [1]
    assert follower.new() == []
    line = b'{"time":1,"kind":"step","step":2,"name":"\xc3\xbc"}\n'
    for cut in range(len(line)):
        with open(path, "ab") as file:
            file.write(line[cut : cut + 1])
        assert steps(follower.new()) == ([2] if cut == len(line) - 1 else [])
    log.write("step", step=3)
    late = EventFollower(path, from_end=True)
    log.write("step", step=4)
    assert steps(follower.new()) == [3, 4]
    assert steps(late.new()) == [4]


def test_readers_beside_two_writing_processes_see_every_event_whole(tmp_path):
    path = tmp_path / "e"
    script = """
import sys
from pathlib import Path
from tunesmith.rundir.events import EventLog
log = EventLog(Path(sys.argv[1]))
for step in range(300):
    log.write("step", step=step, writer=sys.argv[2], text="x" * (step % 97) * 40)
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    follower, seen = EventFollower(path), []
    while any(writer.poll() is None for writer in writers):
        seen += follower.new()
    seen += follower.new()
    assert [writer.returncode for writer in writers] == [0, 0]
    for name in "ab":
        assert [event["step"] for event in seen if event["writer"] == name] == list(range(300))
    assert list(read_events(path)) == seen


def test_parse_event_needs_an_object_with_a_kind():
    assert parse_event('{"kind":"end"}') == {"kind": "end"}
    for line in ("", "x", "[]", "3", '{"time":1}', '{"kind":"end"'):
        assert parse_event(line) is None
    assert {"start", "step", "evaluation", "checkpoint", "warning", "error", "end"} <= KINDS.keys()
