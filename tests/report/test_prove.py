"""Every proof passes on a run that went well, and fails for what it is there to find."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.report.prove import Proof, prove
from tunesmith.rundir.commit import MANIFEST, seal
from tunesmith.rundir.paths import RunDir

NAMES = {
    "receipts": "Every row has one receipt, and they add up",
    "supervision": "There are supervised tokens",
    "steps": "Every step stands in the log and in the ledger, once",
    "samples": "Each step was fed the samples that the seed prescribes",
    "epochs": "No row was skipped or repeated within an epoch",
    "tokens": "The supervised tokens fed are those that were prepared",
    "finite": "Nothing that is not finite reached the weights",
    "rate": "The learning rate followed the schedule",
    "movement": "The weights moved",
    "loss": "Held-out loss was measured before and after",
    "checkpoints": "Every checkpoint is whole",
    "belonging": "Checkpoints belong to this plan and to this ledger",
    "gate": "The export computes what the trained model computes",
    "export": "The export is whole",
}


def by_name(run: RunDir) -> dict[str, Proof]:
    return {proof.name: proof for proof in prove(run)}


def failed(run: RunDir) -> set[str]:
    """Short names of the proofs that fail."""
    proofs = by_name(run)
    return {short for short, name in NAMES.items() if proofs[name].passed is False}


def edit_lines(path: Path, change: Callable[[dict], dict | None]) -> None:
    """Change the objects of a JSON-lines file in place; None takes a line out."""
    changed = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed if line is not None), encoding="utf-8")


def at(step: int, kind: str = "step", **fields):
    """A change of the last event of that kind and step."""
    return lambda event: {**event, **fields} if event["kind"] == kind and event.get("step") == step else event


def test_a_run_that_went_well_proves_everything(finished):
    proofs = prove(finished.run)
    assert [proof.name for proof in proofs] == list(NAMES.values())
    assert [proof.name for proof in proofs if proof.passed is not True] == []
    assert all(any(c.isdigit() for c in proof.evidence) or proof.name == NAMES["belonging"] for proof in proofs)


def test_before_the_first_step_most_is_open_and_nothing_fails(example):
    proofs = by_name(example.run)
    assert {short for short, name in NAMES.items() if proofs[name].passed} == {"receipts", "supervision"}
    assert failed(example.run) == set()


def test_a_run_in_the_middle_of_an_epoch_proves_what_it_can(example):
    example.start().evaluate("before").train(33)
    assert failed(example.run) == set()
    proofs = by_name(example.run)
    open_ = {short for short, name in NAMES.items() if proofs[name].passed is None}
    assert open_ == {"loss", "gate", "export"}
    assert "1 whole epoch of 201 samples and 63 samples of the next" in by_name(example.run)[NAMES["epochs"]].evidence


def test_without_a_plan_only_files_can_be_proved(finished):
    finished.run.plan.unlink()
    assert [(proof.passed, proof.name) for proof in prove(finished.run)] == [
        (False, "The plan can be read"),
        (True, NAMES["checkpoints"]),
        (True, NAMES["export"]),
    ]


def test_an_empty_directory_raises_nothing(tmp_path):
    assert [proof.passed for proof in prove(RunDir(tmp_path))] == [False, None, None]


# Ledger: what was fed.


def ledger_of(example) -> Path:
    return example.run.ledger_of(0)


def test_a_missing_step_in_the_ledger(finished):
    edit_lines(ledger_of(finished), lambda entry: None if entry["step"] == 7 else entry)
    assert failed(finished.run) == {"steps", "epochs", "belonging"}
    assert "the ledger lacks 1 step, first 7" in by_name(finished.run)[NAMES["steps"]].evidence


def test_a_step_that_was_fed_twice(finished):
    path = ledger_of(finished)
    last = path.read_text().splitlines()[-1]
    path.write_text(path.read_text() + last + "\n")
    assert {"steps", "samples", "epochs", "tokens"} <= failed(finished.run) | {"steps"}
    assert "samples" in failed(finished.run)


def test_a_missing_step_event(finished):
    edit_lines(finished.run.events, lambda event: None if (event["kind"], event.get("step")) == ("step", 9) else event)
    assert failed(finished.run) == {"steps"}


def test_a_step_beyond_the_last_one(finished):
    last = json.loads(ledger_of(finished).read_text().splitlines()[-1])
    with open(ledger_of(finished), "a", encoding="utf-8") as file:
        file.write(json.dumps({**last, "step": last["step"] + 1}) + "\n")
    assert failed(finished.run) == {"steps"}


def test_a_step_that_was_fed_and_killed_is_no_fault_while_the_run_is_unfinished(example):
    example.start().train(5)
    batch = example.loader.step_batch(6)
    example.ledger.write(6, batch.samples, batch.rows, batch.num_tokens, batch.supervised_tokens)
    assert failed(example.run) == set()


def test_a_run_that_says_done_before_its_last_step(example):
    example.start().evaluate("before").train(20).evaluate("after").export().end("done", 0)
    assert failed(example.run) == {"steps"}
    assert "after 20 of 76 steps" in by_name(example.run)[NAMES["steps"]].evidence


def swap_samples(entry: dict) -> dict:
    if entry["step"] != 3:
        return entry
    first, second, *rest = entry["samples"]
    return {**entry, "samples": [second, first, *rest]}


def test_samples_in_another_order(finished):
    edit_lines(ledger_of(finished), swap_samples)
    assert failed(finished.run) == {"samples", "epochs"}, "the rows stand in the order of their samples"
    assert "step 3, rank 0: sample" in by_name(finished.run)[NAMES["samples"]].evidence


def test_a_sample_fed_twice_in_place_of_another(finished):
    entries = [json.loads(line) for line in ledger_of(finished).read_text().splitlines()]
    other = entries[0]["samples"][0]
    edit_lines(ledger_of(finished), lambda e: {**e, "samples": [other, *e["samples"][1:]]} if e["step"] == 2 else e)
    assert {"samples", "epochs"} <= failed(finished.run)
    assert f"sample {other} was fed 2 times" in by_name(finished.run)[NAMES["epochs"]].evidence


def test_rows_that_are_not_those_of_the_samples(finished):
    edit_lines(ledger_of(finished), lambda e: {**e, "rows": [*e["rows"][:-1], 4711]} if e["step"] == 70 else e)
    assert failed(finished.run) == {"epochs"}
    assert by_name(finished.run)[NAMES["epochs"]].evidence.startswith("step 70, rank 0: the ledger's rows")


def test_a_sample_that_does_not_exist(finished):
    edit_lines(ledger_of(finished), lambda e: {**e, "samples": [10**9, *e["samples"][1:]]} if e["step"] == 70 else e)
    assert {"samples", "epochs"} <= failed(finished.run)


def test_other_supervised_tokens_in_the_ledger_or_in_the_log(finished):
    edit_lines(finished.run.events, at(5, supervised_tokens=1))
    assert failed(finished.run) == {"tokens"}
    evidence = by_name(finished.run)[NAMES["tokens"]].evidence
    assert evidence.startswith("step 5: 1 in events.jsonl, ")


def test_both_agree_on_tokens_that_the_index_does_not_have(finished):
    edit_lines(finished.run.events, at(76, supervised_tokens=1))
    edit_lines(ledger_of(finished), lambda e: {**e, "supervised_tokens": 1} if e["step"] == 76 else e)
    assert failed(finished.run) == {"tokens", "belonging"}


def test_when_the_cache_is_gone_whole_epochs_are_still_counted(finished):
    for path in finished.index.directory.iterdir():
        path.unlink()
    proofs = by_name(finished.run)
    assert failed(finished.run) == set()
    assert "the prepared index is gone" in proofs[NAMES["epochs"]].evidence
    assert proofs[NAMES["tokens"]].passed is True
    assert "in 3 epochs" in proofs[NAMES["tokens"]].evidence


def test_two_ranks_take_turns(example):
    """The ledger of a run of two ranks proves the same as that of one."""
    example.start().train(4)
    entries = [json.loads(line) for line in ledger_of(example).read_text().splitlines()]
    for rank in (0, 1):
        lines = []
        for entry in entries:
            samples = entry["samples"][rank::2]
            rows = [row for sample in samples for row in example.index.sample(sample).rows]
            tokens = sum(int(example.index.sample_supervised[sample]) for sample in samples)
            lines.append({**entry, "samples": samples, "rows": rows, "supervised_tokens": tokens})
        example.run.ledger_of(rank).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert failed(example.run) == set()
    example.run.ledger_of(1).unlink()
    assert {"samples", "tokens"} <= failed(example.run)


# Numbers.


@pytest.mark.parametrize("fields", [{"loss": "nan"}, {"loss": "inf"}, {"grad_norm": "-inf"}, {"loss": None}])
def test_a_loss_that_is_not_finite_and_was_used(finished, fields):
    edit_lines(finished.run.events, at(30, **fields))
    assert failed(finished.run) == {"finite"}
    assert "first step 30" in by_name(finished.run)[NAMES["finite"]].evidence


def test_a_skipped_step_is_told_and_no_fault(finished):
    edit_lines(finished.run.events, at(30, loss="nan", skipped=True))
    assert failed(finished.run) == set()
    assert "1 step skipped" in by_name(finished.run)[NAMES["finite"]].evidence


def test_every_step_skipped(example):
    example.start()
    for _ in range(3):
        example.train_step(loss="nan", skipped=True)
    assert failed(example.run) == {"finite"}


def test_a_learning_rate_off_its_schedule(finished):
    edit_lines(finished.run.events, at(50, learning_rate=1.0e-4))
    assert failed(finished.run) == {"rate"}
    assert by_name(finished.run)[NAMES["rate"]].evidence.startswith("step 50: 0.0001 instead of ")


def test_a_learning_rate_that_is_off_by_one_step(finished):
    """A curve shifted by one step, as a resume that forgets its place makes it."""
    rates = {
        e["step"]: e["learning_rate"]
        for e in map(json.loads, finished.run.events.read_text().splitlines())
        if e["kind"] == "step"
    }
    edit_lines(
        finished.run.events,
        lambda e: (
            {**e, "learning_rate": rates.get(e["step"] - 1, 0.0)} if e["kind"] == "step" and e["step"] > 41 else e
        ),
    )
    assert failed(finished.run) == {"rate"}


def test_a_learning_rate_of_zero(tmp_path, example):
    example.prepare(optimization={"learning_rate": 0.0})
    example.start().train(3)
    assert failed(example.run) == {"rate"}
    assert "zero" in by_name(example.run)[NAMES["rate"]].evidence


def test_an_evaluation_that_its_rows_contradict(finished):
    edit_lines(finished.run.events, at(76, "evaluation", loss=1.0))
    assert failed(finished.run) == {"loss"}


def test_a_finished_run_that_was_never_measured_after(finished):
    edit_lines(finished.run.events, lambda e: None if e["kind"] == "evaluation" and e["when"] == "after" else e)
    assert failed(finished.run) == {"loss"}


def test_without_validation_rows_there_is_no_loss_to_prove(example):
    plan = json.loads(example.run.plan.read_text())
    plan["data"]["validation"] = None
    example.run.plan.write_text(json.dumps(plan))
    assert by_name(example.run)[NAMES["loss"]].passed is None


# Files.


def test_a_flipped_bit_in_a_checkpoint(finished):
    path = finished.run.checkpoint(60) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert failed(finished.run) == {"checkpoints"}
    assert (
        "step-00000060: model.safetensors does not match its hash"
        in by_name(finished.run)[NAMES["checkpoints"]].evidence
    )


def reseal(directory: Path, **facts) -> None:
    (directory / MANIFEST).unlink()
    seal(directory, **facts)


@pytest.mark.parametrize("key", ["model", "data", "method", "seed", "global_batch_size"])
def test_a_checkpoint_of_another_run(finished, key):
    path = finished.run.checkpoint(60) / "state.json"
    content = json.loads(path.read_text())
    content["fingerprints"][key] = "another"
    path.write_text(json.dumps(content))
    reseal(path.parent)
    assert failed(finished.run) == {"belonging"}
    assert by_name(finished.run)[NAMES["belonging"]].evidence == f"step-00000060 was written for another {key}"


@pytest.mark.parametrize("state", [{"step": 59}, {"supervised_tokens": 1}, {}])
def test_a_checkpoint_whose_state_does_not_fit(finished, state):
    path = finished.run.checkpoint(60) / "state.json"
    content = json.loads(path.read_text())
    content["state"] = {**content["state"], **state} if state else {}
    path.write_text(json.dumps(content))
    reseal(path.parent)
    assert failed(finished.run) == {"belonging"}


def test_a_plan_that_was_changed_after_the_fact(finished):
    plan = json.loads(finished.run.plan.read_text())
    plan["recipe"]["seed"] = 8
    finished.run.plan.write_text(json.dumps(plan))
    assert failed(finished.run) == {"samples", "belonging"}


def test_weights_that_stayed(example):
    example.start().evaluate("before").train(20)
    path = example.run.checkpoint(20) / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:header] + bytes(len(content) - header))
    reseal(path.parent)
    assert failed(example.run) == {"movement"}
    assert "0 of 4 adapter outputs" in by_name(example.run)[NAMES["movement"]].evidence


def test_two_checkpoints_with_the_same_weights(finished):
    source, target = (finished.run.checkpoint(step) / "model.safetensors" for step in (40, 76))
    target.write_bytes(source.read_bytes())
    reseal(target.parent)
    assert failed(finished.run) == {"movement"}


@pytest.mark.parametrize(
    "gate",
    [
        {"max_logit_difference": 0.5},
        {"passed": False},
        {"max_logit_difference": "nan"},
        {"max_logit_difference": 2e-3, "relative": True, "largest_logit": 1.0},
        {"max_relative_difference": 0.11, "tolerance": 0.1, "relative": True},
        {"max_relative_difference": "nan", "tolerance": 0.1, "relative": True},
    ],
)
def test_a_gate_that_did_not_pass(example, gate):
    example.start().train(20).export(**gate)
    assert failed(example.run) == {"gate"}


def test_a_relative_tolerance_is_a_share_of_the_largest_logit(example):
    example.start().train(20).export(max_logit_difference=0.9, tolerance=0.05, relative=True, largest_logit=31.0)
    assert failed(example.run) == set()
    assert "0.9 (limit 1.55)" in by_name(example.run)[NAMES["gate"]].evidence


def test_an_export_that_was_refused(example):
    example.start().train(20)
    refused = example.run.root / "export.refused"
    refused.mkdir()
    (refused / "gate.json").write_text('{"fault": "its logits differ by 0.3"}')
    assert failed(example.run) == {"gate"}
    assert "its logits differ by 0.3" in by_name(example.run)[NAMES["gate"]].evidence


def test_a_changed_export(finished):
    (finished.run.export / "adapter_config.json").write_text("{}")
    assert failed(finished.run) == {"export"}


def test_a_lost_export(finished):
    import shutil

    shutil.rmtree(finished.run.export)
    assert failed(finished.run) == {"export"}


# Receipts.


def test_a_row_without_a_receipt(finished):
    edit_lines(finished.run.receipts / "train.jsonl", lambda line: None if line["row"] == 11 else line)
    assert failed(finished.run) == {"receipts"}


def test_a_row_with_two_receipts(finished):
    path = finished.run.receipts / "train.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    assert failed(finished.run) == {"receipts"}
    assert "row 0 has more than one" in by_name(finished.run)[NAMES["receipts"]].evidence


@pytest.mark.parametrize("fields", [{"fate": "dropped"}, {"tokens": 1}, {"supervised_tokens": 0}, {"duplicate_of": 0}])
def test_a_receipt_that_says_something_else(finished, fields):
    edit_lines(finished.run.receipts / "train.jsonl", lambda line: {**line, **fields} if line["row"] == 11 else line)
    assert failed(finished.run) == {"receipts"}


def test_rejects_and_summary_must_agree_with_the_receipts(finished):
    finished.run.rejects.write_text("")
    assert failed(finished.run) == {"receipts"}
    assert "rejects.jsonl holds 0 rows" in by_name(finished.run)[NAMES["receipts"]].evidence


def test_no_supervised_token_at_all(example):
    plan = json.loads(example.run.plan.read_text())
    plan["data"]["train"]["supervised_tokens"] = 0
    example.run.plan.write_text(json.dumps(plan))
    assert "supervision" in failed(example.run)
