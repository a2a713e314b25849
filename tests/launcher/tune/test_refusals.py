"""Trials that fail alike before their first step end a study; other failures do not."""

from tunesmith.errors import RunFault
from tunesmith.launcher.tune.refusals import MAX_REFUSALS, Refusals


def test_the_same_reason_ends_the_study_apart_from_numbers():
    refusals = Refusals()
    for number in range(MAX_REFUSALS):
        assert refusals.fault is None
        refusals.note(reason=f"the run needs 3.5 GiB, but {number}.25 GiB are free", steps=0)
    assert isinstance(refusals.fault, RunFault)
    assert f"but {MAX_REFUSALS - 1}.25 GiB are free" in str(refusals.fault)


def test_anything_else_in_between_starts_the_count_again():
    for between in ({"reason": None, "steps": 9}, {"reason": "diverged", "steps": 9}, {"reason": "other", "steps": 0}):
        refusals = Refusals()
        for _ in range(MAX_REFUSALS - 1):
            refusals.note(reason="disk full", steps=0)
        refusals.note(**between)
        for _ in range(MAX_REFUSALS - 1):
            refusals.note(reason="disk full", steps=0)
        assert refusals.fault is None


def test_a_trial_that_has_trained_is_not_refused():
    refusals = Refusals()
    for _ in range(MAX_REFUSALS + 1):
        refusals.note(reason="diverged", steps=3)
    assert refusals.fault is None
