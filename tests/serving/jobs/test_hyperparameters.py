"""What is asked of a method, and the numbers that "auto" comes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.serving.errors import ApiError
from tunesmith.serving.jobs.hyperparameters import BASE_RATES, chosen, learning_rate, read_method

AUTO = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}


def test_both_forms_are_read_alike():
    wanted = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    newer = {"method": {"type": "supervised", "supervised": {"hyperparameters": wanted}}}
    assert read_method(newer) == read_method({"hyperparameters": wanted}) == ("supervised", wanted)
    assert read_method({}) == read_method({"method": {"type": "supervised"}}) == ("supervised", AUTO)
    assert read_method({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}}) == (
        "dpo",
        AUTO | {"beta": 0.2},
    )
    assert read_method({"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 1}})[1]["n_epochs"] == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 1.5}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": float("inf")}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": "many"}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"learning_rate_multiplier": float("nan")}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"n_epochs": 10**400}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"learning_rate_multiplier": 10**400}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta"),
        ({"hyperparameters": []}, "hyperparameters"),
        ({"method": "dpo"}, "method"),
        ({"method": {"type": "rlhf"}}, "method.type"),
        ({"method": {"type": []}}, "method.type"),
        ({"method": {"type": "supervised", "supervised": []}}, "method.supervised"),
        ({"method": {"type": "supervised", "supervised": {"n_epochs": 1}}}, "method.supervised.n_epochs"),
        ({"method": {"type": "supervised", "hyperparameters": {"n_epochs": 1}}}, "method.hyperparameters"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {}}}, "hyperparameters": {}}, "hyperparameters"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_parameter(body, param):
    with pytest.raises(ApiError) as raised:
        read_method(body)
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"),
    [(10, 10, 1), (33, 3, 1), (34, 3, 1), (200, 3, 4), (1000, 3, 16), (8334, 2, 32), (60_000, 1, 32), (1, 25, 1)],
)
def test_auto_by_the_rule(examples, epochs, batch):
    numbers = chosen("supervised", AUTO, examples)
    assert (numbers["n_epochs"], numbers["batch_size"]) == (epochs, batch)
    assert learning_rate("supervised", numbers) == BASE_RATES["supervised"]


@given(st.integers(1, 10**6), st.sampled_from(["supervised", "dpo"]))
def test_auto_is_a_number_for_any_file(examples, method):
    numbers = chosen(method, {}, examples)
    assert 1 <= numbers["n_epochs"] <= 25
    assert 1 <= numbers["batch_size"] <= min(32, examples)
    assert ("beta" in numbers) == (method == "dpo")
    assert chosen(method, {"n_epochs": 7, "batch_size": 1}, examples)["n_epochs"] == 7
