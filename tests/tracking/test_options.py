"""The recipe key `tracking`, what it requires, and what is sent of an event."""

import pytest

from tests.event_lines import an_event
from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.sections.trackers import MLflow, TensorBoard, Wandb
from tunesmith.errors import InputError
from tunesmith.tracking.metrics import new_points, points_of
from tunesmith.tracking.redaction import without_secrets
from tunesmith.tracking.trackers import KINDS, require_installed

RECIPE = "name: a\nmodel: {base: x}\nmethod: {kind: lora}\ndata: {train: [a.jsonl]}\ntracking: "


def trackers_of(value: str):
    return load_recipe_text(RECIPE + value).tracking


def test_trackers_are_names_or_sections():
    assert [options.kind for options in trackers_of("[tensorboard, mlflow, wandb, trackio]")] == list(KINDS)
    assert trackers_of("[tensorboard, {kind: wandb, project: p, tags: [a]}]") == [
        TensorBoard(kind="tensorboard"),
        Wandb(kind="wandb", project="p", tags=["a"]),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[comet]", "use one of mlflow, tensorboard, trackio, wandb"),
        ("[wandbb]", "did you mean `wandb`?"),
        ("wandb", "write it as a list: tracking: [wandb]"),
        ("[{kind: wandb, projet: p}]", "did you mean `tracking[0].project`?"),
        ("[mlflow, {kind: mlflow, experiment: e}]", "mlflow is listed more than once"),
        ("[{kind: mlflow, tracking_uri: 'https://me:secret@host'}]", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_errors_say_what_to_write(value, expected):
    with pytest.raises(InputError) as raised:
        trackers_of(value)
    assert expected in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_missing_package_is_an_error_with_the_command_that_installs_it():
    trackers = trackers_of("[tensorboard, mlflow]")
    require_installed(trackers, lambda name: True)
    with pytest.raises(InputError) as raised:
        require_installed(trackers, lambda name: name != "sqlalchemy")
    assert "pip install 'tunesmith[mlflow]'" in str(raised.value)
    require_installed([MLflow(kind="mlflow", tracking_uri="https://host")], lambda name: name == "mlflow")


def test_points_are_finite_and_named_after_the_fields():
    event = an_event("step", step=3, loss=1.5, grad_norm="nan", skipped=True, learning_rate=0.1, time=5.0)
    assert [(point.key, point.step, point.value, point.time) for point in points_of(event)] == [
        ("train/loss", 3, 1.5, 5.0),
        ("train/learning_rate", 3, 0.1, 5.0),
        ("train/skipped", 3, 1.0, 5.0),
    ]


def test_scores_of_a_task_are_sent_without_their_errors():
    scores = {"loss": 0.5, "preference": {"accuracy": 0.75, "accuracy_error": 0.1, "margin": {"mean": 2}}}
    events = {when: an_event("evaluation", step=4, when=when, **scores) for when in ("during", "after")}
    keys = [point.key for when in ("during", "after") for point in points_of(events[when])]
    names = ["loss", "preference/accuracy", "preference/margin/mean"]
    assert keys == [f"eval/{name}" for name in names] + [f"final/{name}" for name in names]


def test_repeated_steps_are_sent_once():
    events = [an_event("step", step=step, loss=float(step)) for step in (1, 2, 3, 2, 3, 4)]
    points = [point for event in events for point in points_of(event)]
    assert [point.step for point in new_points(points, {})] == [1, 2, 3, 4]
    assert [point.step for point in new_points(points, {"train/loss": 2})] == [3, 4]
    assert [point.step for point in new_points(points, {"": 3})] == [4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pw@host/a?token=x rest", "https://host/a rest"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("why? because a@b", "why? because a@b"),
    ],
)
def test_urls_lose_their_credentials(text, expected):
    assert without_secrets(text) == expected


def test_values_of_secret_variables_are_removed(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "abcdef123456")
    assert without_secrets("bad key abcdef123456") == "bad key ***"
