"""Every proof passes on a successful run and fails on the fault that it detects."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.report.prove import Proof, prove
from tunesmith.rundir.commit import MANIFEST, seal
from tunesmith.rundir.paths import RunDir

NAMES = {
    "integrity": "The prepared data, receipts and ledger are intact",
    "receipts": "Every row has exactly one receipt, and the totals agree",
    "supervision": "Every step has supervised tokens",
    "steps": "Every step is recorded once in the log and the ledger",
    "samples": "Every step used the samples prescribed by the seed",
    "epochs": "No row was skipped or repeated within an epoch",
    "tokens": "The trained supervised tokens match the prepared data",
    "finite": "No non-finite value reached the weights",
    "rate": "The learning rate followed the schedule",
    "movement": "The weights changed",
    "loss": "Validation loss was measured before and after training",
    "checkpoints": "Every checkpoint is intact",
    "belonging": "Checkpoints match the plan and the ledger",
    "gate": "The export reproduces the trained model",
    "export": "The export is intact",
}


def by_name(run: RunDir) -> dict[str, Proof]:
    return {proof.name: proof for proof in prove(run)}


def failed(run: RunDir) -> set[str]:
    """Short names of the proofs that fail."""
    proofs = by_name(run)
    return {short for short, name in NAMES.items() if proofs[name].passed is False}


def edit_lines(path: Path, change: Callable[[dict], dict | None]) -> None:
    """Edit the objects of a JSON Lines file in place; None deletes a line. Without checksums, as earlier versions wrote
    them: each proof detects its fault by itself."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    changed = [change({key: value for key, value in line.items() if key != "crc32"}) for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed if line is not None), encoding="utf-8")


def at(step: int, kind: str = "step", **fields):
    """Return an edit that sets fields of the events of that kind and step."""
    return lambda event: {**event, **fields} if event["kind"] == kind and event.get("step") == step else event


def test_all_proofs_of_a_successful_run_pass(finished):
    proofs = prove(finished.run)
    assert [proof.name for proof in proofs] == list(NAMES.values())
    assert [proof.name for proof in proofs if proof.passed is not True] == []
    assert all(any(c.isdigit() for c in proof.evidence) or proof.name == NAMES["belonging"] for proof in proofs)


def test_no_proof_fails_before_the_first_step(example):
    proofs = by_name(example.run)
    assert {short for short, name in NAMES.items() if proofs[name].passed} == {"integrity", "receipts", "supervision"}
    assert failed(example.run) == set()


def test_no_proof_fails_within_an_epoch(example):
    example.start().evaluate("before").train(33)
    assert failed(example.run) == set()
    proofs = by_name(example.run)
    open_ = {short for short, name in NAMES.items() if proofs[name].passed is None}
    assert open_ == {"loss", "gate", "export"}
    assert "1 complete epoch of 201 samples and 63 samples of the next" in proofs[NAMES["epochs"]].evidence


def test_only_files_are_verified_without_a_plan(finished):
    finished.run.plan.unlink()
    assert [(proof.passed, proof.name) for proof in prove(finished.run)] == [
        (False, "The plan is readable"),
        (True, NAMES["checkpoints"]),
        (True, NAMES["export"]),
    ]


def test_empty_directory_raises_no_error(tmp_path):
    assert [proof.passed for proof in prove(RunDir(tmp_path))] == [False, None, None]


# Training data and ledger.


def ledger_of(example) -> Path:
    return example.run.ledger_of(0)


def test_damaged_index_receipts_and_ledger_are_named(finished):
    def evidence_of(path: Path, old: bytes, new: bytes) -> str:
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new, 1))
        assert path.read_bytes() != content
        assert "integrity" in failed(finished.run)
        evidence = by_name(finished.run)[NAMES["integrity"]].evidence
        path.write_bytes(content)
        assert "restore the files from a backup" in evidence
        return evidence

    seal(finished.run.receipts)
    passed = by_name(finished.run)[NAMES["integrity"]]
    assert passed.passed
    assert "index-validation" in passed.evidence  # not in the cache: not verified, and not a fault
    index = Path(finished.index.directory) / "tokens.u32"
    assert f"{index.parent}: tokens.u32 does not match its hash" in evidence_of(index, b"\x01", b"\x02")
    receipts = finished.run.receipts / "train.jsonl"
    assert "train.jsonl does not match its hash" in evidence_of(receipts, b"reason", b"raeson")
    ledger = ledger_of(finished)
    assert f"{ledger}:1: the line does not match its checksum" in evidence_of(
        ledger, b'"num_tokens":', b'"num_tokens":1'
    )


def test_an_elastic_run_that_started_with_fewer_ranks_than_planned_is_intact(finished):
    plan = json.loads(finished.run.plan.read_text())
    finished.run.plan.write_text(json.dumps(plan | {"compute": plan["compute"] | {"world_size": 4}}))
    assert by_name(finished.run)[NAMES["integrity"]].passed


def test_missing_step_in_the_ledger_is_detected(finished):
    edit_lines(ledger_of(finished), lambda entry: None if entry["step"] == 7 else entry)
    assert failed(finished.run) == {"steps", "epochs", "belonging"}
    assert "1 step missing from the ledger, first: 7" in by_name(finished.run)[NAMES["steps"]].evidence


def test_repeated_step_in_the_ledger_is_detected(finished):
    path = ledger_of(finished)
    last = path.read_text().splitlines()[-1]
    path.write_text(path.read_text() + last + "\n")
    assert {"steps", "samples", "epochs", "tokens"} <= failed(finished.run) | {"steps"}
    assert "samples" in failed(finished.run)


def test_missing_step_event_is_detected(finished):
    edit_lines(finished.run.events, lambda event: None if (event["kind"], event.get("step")) == ("step", 9) else event)
    assert failed(finished.run) == {"steps"}


def test_ledger_step_after_the_last_one_is_detected(finished):
    last = json.loads(ledger_of(finished).read_text().splitlines()[-1])
    with open(ledger_of(finished), "a", encoding="utf-8") as file:
        file.write(json.dumps({**last, "step": last["step"] + 1}) + "\n")
    assert failed(finished.run) == {"integrity", "steps"}


def test_interrupted_step_is_no_fault_in_an_unfinished_run(example):
    example.start().train(5)
    batch = example.loader.step_batch(6)
    example.ledger.write(6, batch.samples, batch.rows, batch.num_tokens, batch.supervised_tokens, (4, 1))
    assert failed(example.run) == set()


def test_run_recorded_as_done_before_its_last_step_is_detected(example):
    example.start().evaluate("before").train(20).evaluate("after").export().end("done", 0)
    assert failed(example.run) == {"steps"}
    assert "after 20 of 76 steps" in by_name(example.run)[NAMES["steps"]].evidence


def swap_samples(entry: dict) -> dict:
    if entry["step"] != 3:
        return entry
    first, second, *rest = entry["samples"]
    return {**entry, "samples": [second, first, *rest]}


def test_reordered_samples_are_detected(finished):
    edit_lines(ledger_of(finished), swap_samples)
    assert failed(finished.run) == {"samples", "epochs"}, "the order of the rows follows that of their samples"
    assert "step 3, rank 0: sample" in by_name(finished.run)[NAMES["samples"]].evidence


def test_repeated_sample_is_detected(finished):
    entries = [json.loads(line) for line in ledger_of(finished).read_text().splitlines()]
    other = entries[0]["samples"][0]
    edit_lines(ledger_of(finished), lambda e: {**e, "samples": [other, *e["samples"][1:]]} if e["step"] == 2 else e)
    assert {"samples", "epochs"} <= failed(finished.run)
    assert f"sample {other} was used 2 times" in by_name(finished.run)[NAMES["epochs"]].evidence


def test_rows_that_do_not_match_their_samples_are_detected(finished):
    edit_lines(ledger_of(finished), lambda e: {**e, "rows": [*e["rows"][:-1], 4711]} if e["step"] == 70 else e)
    assert failed(finished.run) == {"epochs"}
    assert by_name(finished.run)[NAMES["epochs"]].evidence.startswith("step 70, rank 0: the rows in the ledger")


def test_nonexistent_sample_is_detected(finished):
    edit_lines(ledger_of(finished), lambda e: {**e, "samples": [10**9, *e["samples"][1:]]} if e["step"] == 70 else e)
    assert {"samples", "epochs"} <= failed(finished.run)


def test_token_count_mismatch_between_log_and_ledger_is_detected(finished):
    edit_lines(finished.run.events, at(5, supervised_tokens=1))
    assert failed(finished.run) == {"tokens"}
    evidence = by_name(finished.run)[NAMES["tokens"]].evidence
    assert evidence.startswith("step 5: 1 in events.jsonl, ")


def test_token_count_mismatch_with_the_index_is_detected(finished):
    edit_lines(finished.run.events, at(76, supervised_tokens=1))
    edit_lines(ledger_of(finished), lambda e: {**e, "supervised_tokens": 1} if e["step"] == 76 else e)
    assert failed(finished.run) == {"tokens", "belonging"}


def test_complete_epochs_are_verified_without_the_cached_index(finished):
    for path in finished.index.directory.iterdir():
        path.unlink()
    proofs = by_name(finished.run)
    assert failed(finished.run) == set()
    assert "the token index is missing" in proofs[NAMES["epochs"]].evidence
    assert proofs[NAMES["tokens"]].passed is True
    assert "in 3 epochs" in proofs[NAMES["tokens"]].evidence


def test_samples_are_interleaved_over_two_ranks(example):
    """The ledgers of two ranks are verified like that of one."""
    example.start().train(4)
    entries = [json.loads(line) for line in ledger_of(example).read_text().splitlines()]
    for rank in (0, 1):
        lines = []
        for entry in entries:
            samples = entry["samples"][rank::2]
            rows = [row for sample in samples for row in example.index.sample(sample).rows]
            tokens = sum(int(example.index.sample_supervised[sample]) for sample in samples)
            lines.append({**entry, "samples": samples, "rows": rows, "supervised_tokens": tokens, "crc32": None})
        example.run.ledger_of(rank).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert failed(example.run) == set()
    example.run.ledger_of(1).unlink()
    assert {"samples", "tokens"} <= failed(example.run)


# Numbers.


@pytest.mark.parametrize("fields", [{"loss": "nan"}, {"loss": "inf"}, {"grad_norm": "-inf"}, {"loss": None}])
def test_unskipped_non_finite_value_is_detected(finished, fields):
    edit_lines(finished.run.events, at(30, **fields))
    assert failed(finished.run) == {"finite"}
    assert "first: step 30" in by_name(finished.run)[NAMES["finite"]].evidence


def test_skipped_step_is_reported_and_no_fault(finished):
    edit_lines(finished.run.events, at(30, loss="nan", skipped=True))
    assert failed(finished.run) == set()
    assert "1 step skipped" in by_name(finished.run)[NAMES["finite"]].evidence


def test_run_with_all_steps_skipped_is_detected(example):
    example.start()
    for _ in range(3):
        example.train_step(loss="nan", skipped=True)
    assert failed(example.run) == {"finite"}


def test_learning_rate_off_the_schedule_is_detected(finished):
    edit_lines(finished.run.events, at(50, learning_rate=1.0e-4))
    assert failed(finished.run) == {"rate"}
    assert by_name(finished.run)[NAMES["rate"]].evidence.startswith("step 50: 0.0001 instead of ")


def test_learning_rate_shifted_by_one_step_is_detected(finished):
    """As by a resume that restores the wrong position of the schedule."""
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


def test_learning_rate_of_zero_is_detected(tmp_path, example):
    example.prepare(optimization={"learning_rate": 0.0})
    example.start().train(3)
    assert failed(example.run) == {"rate"}
    assert "zero" in by_name(example.run)[NAMES["rate"]].evidence


def test_evaluation_that_contradicts_its_rows_is_detected(finished):
    edit_lines(finished.run.events, at(76, "evaluation", loss=1.0))
    assert failed(finished.run) == {"loss"}


def test_finished_run_without_a_final_evaluation_is_detected(finished):
    edit_lines(finished.run.events, lambda e: None if e["kind"] == "evaluation" and e["when"] == "after" else e)
    assert failed(finished.run) == {"loss"}


def test_loss_proof_is_open_without_validation_rows(example):
    plan = json.loads(example.run.plan.read_text())
    plan["data"]["validation"] = None
    example.run.plan.write_text(json.dumps(plan))
    assert by_name(example.run)[NAMES["loss"]].passed is None


# Files.


def test_flipped_bit_in_a_checkpoint_is_detected(finished):
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
def test_checkpoint_of_a_different_run_is_detected(finished, key):
    path = finished.run.checkpoint(60) / "state.json"
    content = json.loads(path.read_text())
    content["fingerprints"][key] = "different"
    path.write_text(json.dumps(content))
    reseal(path.parent)
    assert failed(finished.run) == {"belonging"}
    assert by_name(finished.run)[NAMES["belonging"]].evidence == f"step-00000060 was written for a different {key}"


@pytest.mark.parametrize("state", [{"step": 59}, {"supervised_tokens": 1}, {}])
def test_checkpoint_with_an_inconsistent_state_is_detected(finished, state):
    path = finished.run.checkpoint(60) / "state.json"
    content = json.loads(path.read_text())
    content["state"] = {**content["state"], **state} if state else {}
    path.write_text(json.dumps(content))
    reseal(path.parent)
    assert failed(finished.run) == {"belonging"}


def test_plan_changed_after_the_run_is_detected(finished):
    plan = json.loads(finished.run.plan.read_text())
    plan["recipe"]["seed"] = 8
    finished.run.plan.write_text(json.dumps(plan))
    assert failed(finished.run) == {"samples", "belonging"}


def test_unchanged_adapter_weights_are_detected(example):
    example.start().evaluate("before").train(20)
    path = example.run.checkpoint(20) / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:header] + bytes(len(content) - header))
    reseal(path.parent)
    assert failed(example.run) == {"movement"}
    assert "0 of 4 adapter outputs" in by_name(example.run)[NAMES["movement"]].evidence


def test_checkpoints_with_identical_weights_are_detected(finished):
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
def test_export_that_failed_the_gate_is_detected(example, gate):
    example.start().train(20).export(**gate)
    assert failed(example.run) == {"gate"}


def test_relative_tolerance_scales_with_the_largest_logit(example):
    example.start().train(20).export(max_logit_difference=0.9, tolerance=0.05, relative=True, largest_logit=31.0)
    assert failed(example.run) == set()
    assert "0.9 (limit 1.55)" in by_name(example.run)[NAMES["gate"]].evidence


def test_rejected_export_is_detected(example):
    example.start().train(20)
    refused = example.run.root / "export.refused"
    refused.mkdir()
    (refused / "gate.json").write_text('{"fault": "the logits differ by 0.3"}')
    assert failed(example.run) == {"gate"}
    assert "the logits differ by 0.3" in by_name(example.run)[NAMES["gate"]].evidence


def test_modified_export_is_detected(finished):
    (finished.run.export / "adapter_config.json").write_text("{}")
    assert failed(finished.run) == {"export"}


def test_missing_export_is_detected(finished):
    import shutil

    shutil.rmtree(finished.run.export)
    assert failed(finished.run) == {"export"}


# Receipts.


def test_row_without_a_receipt_is_detected(finished):
    edit_lines(finished.run.receipts / "train.jsonl", lambda line: None if line["row"] == 11 else line)
    assert failed(finished.run) == {"receipts"}


def test_row_with_two_receipts_is_detected(finished):
    path = finished.run.receipts / "train.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    assert failed(finished.run) == {"receipts"}
    assert "row 0 has more than one receipt" in by_name(finished.run)[NAMES["receipts"]].evidence


@pytest.mark.parametrize("fields", [{"fate": "dropped"}, {"tokens": 1}, {"supervised_tokens": 0}, {"duplicate_of": 0}])
def test_modified_receipt_is_detected(finished, fields):
    edit_lines(finished.run.receipts / "train.jsonl", lambda line: {**line, **fields} if line["row"] == 11 else line)
    assert failed(finished.run) == {"receipts"}


def test_rejects_that_disagree_with_the_receipts_are_detected(finished):
    finished.run.rejects.write_text("")
    assert failed(finished.run) == {"receipts"}
    assert "rejects.jsonl contains 0 rows" in by_name(finished.run)[NAMES["receipts"]].evidence


def test_training_data_without_supervised_tokens_is_detected(example):
    plan = json.loads(example.run.plan.read_text())
    plan["data"]["train"]["supervised_tokens"] = 0
    example.run.plan.write_text(json.dumps(plan))
    assert "supervision" in failed(example.run)


def test_passes_are_evidence_and_ranks_must_agree_on_them(example):
    example.start().train(4)
    entries = [json.loads(line) for line in ledger_of(example).read_text().splitlines()]

    def write(sizes: tuple[tuple[int, int], tuple[int, int]]) -> Proof:
        """Write the ledgers of two ranks; sizes: of each from step 3 on."""
        for rank, (size, passes) in enumerate(sizes):
            lines = []
            for entry in entries:
                samples = entry["samples"][rank::2]
                changed = {"micro_batch_size": size, "passes_per_sequence": passes} if entry["step"] > 2 else {}
                lines.append({**entry, "samples": samples, **changed, "crc32": None})
            example.run.ledger_of(rank).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return by_name(example.run)[NAMES["samples"]]

    assert write(((2, 1), (2, 1))).evidence.endswith("; from step 3 on in passes of 2 samples")
    assert write(((1, 4), (1, 4))).evidence.endswith("; from step 3 on in passes of 1/4 of a sample")
    proof = write(((2, 1), (1, 1)))
    assert proof.passed is False
    assert proof.evidence == "step 3: ranks 0 and 1 divided it into passes of another size"
