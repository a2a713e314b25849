"""Training curves: those of a mixture of experts are shown if its step events have them."""

from dataclasses import replace

from tunesmith.report.dynamics import curves
from tunesmith.report.record import read_record

TITLES = ("Router loss", "Expert load", "Router entropy")


def test_routing_is_shown_for_models_with_experts_only(finished):
    record = read_record(finished.run)
    assert not [title for title in TITLES if title in str(curves(record))]
    record.steps[:] = [
        replace(step, router_loss=2.0 + step.step, expert_load=1.5, router_entropy=0.7) for step in record.steps
    ]
    shown = str(curves(record))
    assert [title for title in TITLES if title in shown] == list(TITLES)
