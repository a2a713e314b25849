"""Validation of hyperparameters, and the values of "auto"."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.serving.errors import ApiError
from tunesmith.serving.jobs.hyperparameters import BASE_RATES, learning_rate, read_method, resolve

AUTO = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}


def test_current_and_deprecated_forms_are_equivalent():
    values = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    current = {"method": {"type": "supervised", "supervised": {"hyperparameters": values}}}
    assert read_method(current) == read_method({"hyperparameters": values}) == ("supervised", values)
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
def test_invalid_hyperparameters_are_rejected_with_their_parameter(body, param):
    with pytest.raises(ApiError) as raised:
        read_method(body)
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"),
    [(10, 10, 1), (33, 3, 1), (34, 3, 1), (200, 3, 4), (1000, 3, 16), (8334, 2, 32), (60_000, 1, 32), (1, 25, 1)],
)
def test_auto_values(examples, epochs, batch):
    numbers = resolve("supervised", AUTO, examples)
    assert (numbers["n_epochs"], numbers["batch_size"]) == (epochs, batch)
    assert learning_rate("supervised", numbers) == BASE_RATES["supervised"]


@given(st.integers(1, 10**6), st.sampled_from(["supervised", "dpo"]))
def test_auto_values_are_in_range_for_any_file(examples, method):
    numbers = resolve(method, {}, examples)
    assert 1 <= numbers["n_epochs"] <= 25
    assert 1 <= numbers["batch_size"] <= min(32, examples)
    assert ("beta" in numbers) == (method == "dpo")
    assert resolve(method, {"n_epochs": 7, "batch_size": 1}, examples)["n_epochs"] == 7
