"""`integrations` of a job become the tracker of its run, or are rejected with the reason."""

import pytest

from tests.event_lines import an_event
from tunesmith.configs.sections.trackers import Wandb
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir
from tunesmith.serving.errors import ApiError
from tunesmith.serving.jobs.integrations import read_integrations, require_available
from tunesmith.serving.jobs.relay import ApiEvent, Relay
from tunesmith.serving.jobs.validation import Files, JobRequest, validate

OPTIONS = {"project": "p", "name": "n", "entity": "e", "tags": ["a", "b"]}
WANDB = [{"type": "wandb", "wandb": OPTIONS}]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("wandb", "integrations"),
        (["wandb"], "integrations"),
        ([{"type": "mlflow"}], "integrations[0].type"),
        ([{"type": "wandb"}], "integrations[0].wandb"),
        ([{"type": "wandb", "wandb": {}}], "integrations[0].wandb.project"),
        ([{"type": "wandb", "wandb": {"project": 1}}], "integrations[0].wandb.project"),
        ([{"type": "wandb", "wandb": {"project": "p\0"}}], "integrations[0].wandb.project"),
        ([{"type": "wandb", "wandb": {"project": "p", "api_key": "k"}}], "integrations[0].wandb.api_key"),
        ([{"type": "wandb", "wandb": {"project": "p", "tags": "a"}}], "integrations[0].wandb.tags"),
        (WANDB * 2, "integrations"),
    ],
)
def test_invalid_integrations_are_rejected(value, param):
    with pytest.raises(ApiError) as raised:
        read_integrations(value)
    assert raised.value.param == param
    assert raised.value.status == 400


def test_without_an_account_they_are_rejected_with_what_the_operator_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    require_available(None, {})
    with pytest.raises(ApiError, match="WANDB_API_KEY") as raised:
        require_available(WANDB, {})
    assert raised.value.param == "integrations"
    require_available(WANDB, {"WANDB_API_KEY": "k"})
    require_available(WANDB, {"WANDB_MODE": "offline"})
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    require_available(WANDB, {})
    with pytest.raises(ApiError):
        require_available(WANDB, {"WANDB_BASE_URL": "https://wandb.example.org"})


def test_they_become_the_tracker_of_the_run(tiny_llama, write_jsonl):
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"{n}"}]} for n in range(12)
    ]
    files = Files(write_jsonl("rows.jsonl", rows), None)
    request = JobRequest("ftjob-1", tiny_llama, None, "supervised", {}, 1, integrations=read_integrations(WANDB) or ())
    (tracker,) = validate(request, files).recipe.tracking
    assert tracker == Wandb(kind="wandb", **OPTIONS, log_report=False, log_model=False)
    assert validate(JobRequest("ftjob-1", tiny_llama, None, "supervised", {}, 1), files).recipe.tracking == []


def test_the_address_of_the_run_is_an_event_of_the_job(tmp_path):
    run = RunDir(tmp_path)
    log = EventLog(run.events)
    for _ in range(2):  # also after a restart of the launcher
        log.write(an_event("tracker", name="wandb", run_id="r", url="https://wandb.example.org/p/runs/r", time=3.0))
    first, second = Relay(run).new()
    assert isinstance(first, ApiEvent)
    assert isinstance(second, ApiEvent)
    assert first.message == "Weights and Biases run: https://wandb.example.org/p/runs/r"
    assert first.key == second.key
