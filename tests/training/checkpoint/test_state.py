"""The state of a run: which validation loss is the best."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.training.checkpoint.state import RunState


@given(st.lists(st.floats(0.0, 20.0) | st.sampled_from([math.nan, math.inf]), max_size=8))
def test_the_best_loss_is_the_first_lowest_number(losses):
    """A loss that is not a number is never the best, neither first nor later."""
    state = RunState()
    for state.step, loss in enumerate(losses):
        state.note_validation(loss, 0.0)
    numbers = [loss for loss in losses if not math.isnan(loss)]
    assert state.best_loss == min(numbers, default=None)
    assert state.best_step == (losses.index(min(numbers)) if numbers else None)
    since = losses[state.best_step + 1 :] if state.best_step is not None else losses
    assert state.evaluations_without_gain == len(since)
