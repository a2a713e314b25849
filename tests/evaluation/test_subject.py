"""The base model of a run or an adapter that names it by hub id."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tests.training.export.test_export import LORA, Trained
from tunesmith.errors import InputError
from tunesmith.evaluation.subject import find_subject
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.rundir.paths import RunDir
from tunesmith.training.export.export import export_from_checkpoint

COMMIT = "a" * 40
REPOSITORY = "models--organisation--name"
TOKENS = torch.arange(3, 40)[None]


def cached(cache: Path, base: Path) -> Path:
    """A copy of the model in the layout of the hub's cache."""
    (cache / REPOSITORY / "refs").mkdir(parents=True)
    (cache / REPOSITORY / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(base, cache / REPOSITORY / "snapshots" / COMMIT)


@pytest.fixture(scope="module")
def exported(tiny_llama, tmp_path_factory) -> Trained:
    """A trained and exported run whose base is a hub id."""
    root = tmp_path_factory.mktemp("hub-run")
    trained = Trained(cached(root / "hub", tiny_llama), root / "run", LORA).train(steps=2)
    trained.save(2)
    trained.export()
    return trained


@pytest.fixture
def run(exported, tmp_path) -> RunDir:
    return RunDir(shutil.copytree(exported.run.root, tmp_path / "run"))


@pytest.fixture
def no_hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def gone(exported):
    """The base model's directory, moved away during the test."""
    directory = Path(exported.plan.model.directory)
    directory.rename(directory.with_name("moved"))
    yield directory
    directory.with_name("moved").rename(directory)


def logits_of(target: Path) -> torch.Tensor:
    with torch.no_grad():
        return find_subject(str(target)).load().model(input_ids=TOKENS, position_ids=torch.arange(37)[None],
                                                      documents=Documents([37]), use_cache=False).logits  # fmt: skip


def expected(exported) -> torch.Tensor:
    exported.loss.eval()
    with torch.no_grad():
        return exported.model(input_ids=TOKENS, position_ids=torch.arange(37)[None], documents=Documents([37]),
                              use_cache=False).logits  # fmt: skip


@pytest.mark.usefixtures("no_hub")
def test_a_run_uses_the_base_that_its_plan_resolved(exported, run):
    assert '"organisation/name"' in (run.export / "adapter_config.json").read_text()
    assert COMMIT in (run.export / "adapter_config.json").read_text()
    torch.testing.assert_close(logits_of(run.root), expected(exported), rtol=1e-5, atol=1e-5)
    shutil.rmtree(run.export)
    torch.testing.assert_close(logits_of(run.root), expected(exported), rtol=1e-5, atol=1e-5)


def test_the_same_commit_in_another_cache_is_used(exported, run, gone, no_hub):
    cached(no_hub, gone.with_name("moved"))
    torch.testing.assert_close(logits_of(run.root), expected(exported), rtol=1e-5, atol=1e-5)
    merged = export_from_checkpoint(run, form="model", to=run.root / "merged")
    assert merged.gate["passed"]


@pytest.mark.usefixtures("no_hub")
def test_a_base_that_is_gone_is_named_with_the_remedy(run, gone):
    for use in (lambda: find_subject(str(run.root)), lambda: export_from_checkpoint(run)):
        with pytest.raises(InputError, match="base model of the run is no longer on this machine") as caught:
            use()
        assert caught.value.where == str(gone)
        assert f"hf download organisation/name --revision {COMMIT}" in str(caught.value.remedy)


def test_an_adapter_directory_finds_its_base_in_the_cache(exported, run, gone, no_hub):
    alone = shutil.copytree(run.export, run.root.parent / "adapter")
    with pytest.raises(InputError, match="'organisation/name' is not on this machine") as caught:
        find_subject(str(alone))
    assert f"hf download organisation/name --revision {COMMIT}" in str(caught.value.remedy)
    cached(no_hub, gone.with_name("moved"))
    torch.testing.assert_close(logits_of(alone), expected(exported), rtol=1e-5, atol=1e-5)
