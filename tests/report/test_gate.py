"""Formatting of the export gate's result, in the report and the command line."""

from tunesmith.report.gate import gate_measure


def test_absolute_gate_is_shown_with_its_limit():
    measure = gate_measure({"max_logit_difference": 1.2e-6, "tolerance": 1e-3, "relative": False})
    assert str(measure) == "largest logit difference 1.2e-6 (limit 0.001)"
    assert measure.holds


def test_relative_gate_is_shown_as_a_percentage():
    gate = {"max_logit_difference": 3.1, "tolerance": 0.1, "relative": True, "largest_logit": 70.0}
    measure = gate_measure({**gate, "max_relative_difference": 0.0443})
    assert str(measure) == "largest logit difference 4.43% of the largest logit (limit 10%)"
    assert measure.holds
    assert not gate_measure({**gate, "max_relative_difference": 0.101}).holds


def test_relative_gate_of_an_earlier_version_is_shown_in_logits():
    gate = {"max_logit_difference": 3.1, "tolerance": 0.1, "relative": True, "largest_logit": 70.0}
    assert str(gate_measure(gate)) == "largest logit difference 3.1 (limit 7)"


def test_gate_without_numbers_is_shown_as_not_recorded():
    for gate in (None, {}, {"max_logit_difference": "<b>"}):
        assert str(gate_measure(gate)) == "no logit difference recorded"
        assert not gate_measure(gate).holds
