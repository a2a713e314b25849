"""The proof and the report of a mixture, on a run of an example whose samples are divided into two data sets."""

import json

import pytest

from tests.report.conftest import Example
from tunesmith.configs.plan import DataSetFacts
from tunesmith.data.index.order import order_of
from tunesmith.report.mixture import datasets
from tunesmith.report.proofs.ledger import prove_epochs, prove_samples, prove_tokens
from tunesmith.report.proofs.mixture import prove_mixture
from tunesmith.report.record import read_record
from tunesmith.rundir.ledger import Ledger

STEPS = 12


@pytest.fixture
def mixed(example) -> Example:
    """A run of 12 steps of 8 samples, of which three quarters are of the data set support."""
    number = example.index.num_samples
    sets = [
        DataSetFacts(name="support", row_ranges=[(0, 300)], num_rows=300, num_samples=40, samples_per_epoch=75),
        DataSetFacts(
            name="general",
            row_ranges=[(300, 480)],
            num_rows=180,
            first_sample=40,
            num_samples=number - 40,
            validation_rows=18,
            samples_per_epoch=25,
        ),
    ]
    data = example.plan.data.model_copy(update={"datasets": sets, "epoch_samples": 100})
    example.plan = example.plan.model_copy(update={"data": data})
    example.plan.write(example.run.plan)
    example.loader = example.loader.with_order(order_of(example.plan.recipe.seed, data))
    example.start()
    for _ in range(STEPS):
        example.train_step()
    return example


def rewrite(example: Example, samples_of, datasets_of=None) -> None:
    """Write the ledger again: samples_of(step, samples) are used instead, with these counts by data set."""
    path = example.run.ledger_of(0)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    ledger = Ledger(example.run, 0, 1)
    for entry in entries:
        samples = samples_of(entry["step"], entry["samples"])
        rows = [row for sample in samples for row in example.index.sample(sample).rows]
        counts = datasets_of(samples) if datasets_of else None
        tokens = int(example.index.sample_supervised[samples].sum())
        ledger.write(entry["step"], samples, rows, 1, tokens, (4, 1), datasets=counts)
    ledger.close()


def test_the_proofs_of_a_mixture_pass(mixed):
    record, plan = read_record(mixed.run), mixed.plan
    proof = prove_mixture(record, plan)
    assert proof.passed is True
    assert "support 72 (75.00%), general 24 (25.00%) of 96 samples" in proof.evidence
    assert prove_samples(record, plan).passed is True
    epochs = prove_epochs(record, plan)
    assert epochs.passed is True
    assert "support: 1 complete pass of 40 samples and 32 samples of the next" in epochs.evidence
    assert "general: 24 of " in epochs.evidence


def test_a_sample_of_the_wrong_data_set_is_detected(mixed):
    """Two samples of general instead of support in step 5, with counts that say so."""

    def exchanged(step: int, samples: list[int]) -> list[int]:
        if step != 5:
            return samples
        places = [place for place, sample in enumerate(samples) if sample < 40][:2]
        return [150 + place if place in places else sample for place, sample in enumerate(samples)]

    rewrite(mixed, exchanged, lambda samples: mixed.plan.data.samples_by_dataset(samples))
    proof = prove_mixture(read_record(mixed.run), mixed.plan)
    assert proof.passed is False
    assert "step 5: " in proof.evidence
    assert prove_samples(read_record(mixed.run), mixed.plan).passed is False


def test_counts_that_are_not_those_of_the_samples_are_detected(mixed):
    rewrite(mixed, lambda step, samples: samples, lambda samples: {"support": 6, "general": 1})
    proof = prove_mixture(read_record(mixed.run), mixed.plan)
    assert (proof.passed, "the counts do not match" in proof.evidence) == (False, True)


def test_a_sample_repeated_within_a_pass_is_detected(mixed):
    first = json.loads(mixed.run.ledger_of(0).read_text().splitlines()[0])["samples"]

    def repeated(step: int, samples: list[int]) -> list[int]:
        return first if step == 2 else samples

    rewrite(mixed, repeated)
    proof = prove_epochs(read_record(mixed.run), mixed.plan)
    assert proof.passed is False
    assert "pass 1: sample" in proof.evidence


def test_tokens_of_a_mixture_are_open_without_the_index(mixed):
    assert prove_tokens(read_record(mixed.run), mixed.plan).passed is True
    for path in sorted(mixed.index.directory.iterdir()):
        path.unlink()
    assert prove_tokens(read_record(mixed.run), mixed.plan).passed is None


def test_the_report_has_a_row_for_each_data_set(mixed):
    mixed.evaluate("during")
    shown = str(datasets(read_record(mixed.run)))
    assert all(text in shown for text in ("support", "general", "75.00%", "1.80", "An epoch has 100 samples"))


def test_a_run_without_named_data_sets_has_no_such_section(example):
    assert datasets(read_record(example.start().run)) is None
