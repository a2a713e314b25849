"""Adapters with embeddings of new tokens on one base model: logits as with peft, for each adapter's rows alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.inference.adapters import Adapters
from tunesmith.modeling.adapters.method import apply_method, trained_parameters

METHOD = Lora(kind="lora", lora_rank=4, lora_alpha=8)
ROWS = {"few": [380, 384, 385], "more": [384, 385, 386, 387], "free": [7, 383]}
V = 384


def load(base: Path, rows: int = V):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows > V:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request, tiny_llama, tiny_llama_untied) -> Path:
    return tiny_llama if request.param == "tied" else tiny_llama_untied


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory) -> dict[str, Path]:
    """Adapters with random weights and rows, saved by peft."""
    directories = {}
    for seed, (name, rows) in enumerate(ROWS.items()):
        model = apply_method(load(base, max(V, rows[-1] + 1)), METHOD, new_rows=rows)
        with torch.no_grad():
            for number, parameter in enumerate(trained_parameters(model).values()):
                generator = torch.Generator().manual_seed(100 * seed + number)
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        directories[name] = tmp_path_factory.mktemp(name)
        assert isinstance(model, PeftModel)
        model.save_pretrained(directories[name], save_embedding_layers=False)
    return directories


def reference(base: Path, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    rows = ROWS[adapter.name.rstrip("0123456789")]
    model = PeftModel.from_pretrained(load(base, max(V, rows[-1] + 1)), str(adapter))
    return model(input_ids=tokens).logits[0]


@torch.no_grad()
def test_logits_of_each_adapter_equal_pefts_and_the_base_is_unchanged(base, saved):
    model = load(base)
    prompt = torch.tensor([[5, 9, 30, 7, 8]])
    original = model(input_ids=prompt).logits
    adapters = Adapters(model, torch.float32, torch.device("cpu"))
    for directory in saved.values():
        adapters.use(str(directory))
    for name, directory in saved.items():
        tokens = torch.tensor([[5, *ROWS[name], 9, 380, 7]])
        expected = reference(base, directory, tokens)
        adapters.rows.body = adapters.rows.head = [(0, tokens.shape[1], str(directory))]
        logits = model(input_ids=tokens).logits[0][:, : adapters.tokens.num_tokens(str(directory))]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    adapters.rows.body = adapters.rows.head = []
    assert torch.equal(model(input_ids=prompt).logits[..., :V], original)
    assert adapters.tokens.num_tokens("") == V


@torch.no_grad()
def test_rows_of_a_batch_use_only_their_own_adapter(base, saved):
    """Without attention between them: the first layer's input shows which embedding a row got."""
    model = load(base)
    adapters = Adapters(model, torch.float32, torch.device("cpu"))
    few, more = (str(saved[name]) for name in ("few", "more"))
    adapters.use(few)
    adapters.use(more)
    adapters.rows.body = [(1, 3, few), (3, 4, more)]
    embedded = model.get_input_embeddings()(torch.tensor([[380, 380, 385, 385, 380]]))[0]
    rows = adapters.tokens.rows
    plain = model.get_input_embeddings().weight[380]
    expected = [plain, rows[few].embedding_KH[0], rows[few].embedding_KH[2], rows[more].embedding_KH[1], plain]
    assert torch.equal(embedded, torch.stack(expected))


def test_an_unloaded_adapter_leaves_no_rows(base, saved):
    adapters = Adapters(load(base), torch.float32, torch.device("cpu"))
    adapters.use(str(saved["few"]))
    assert adapters.tokens.num_tokens(str(saved["few"])) == V + 2
    adapters.unload(str(saved["few"]))
    assert adapters.tokens.num_tokens(str(saved["few"])) == V
    assert not adapters.tokens.rows


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        ([380, 384, 390], "gaps beyond the vocabulary"),
        ([380, 384, 384], "different numbers"),
        ([384, 385], r"no matrices of shape \[2, 32\]"),
    ],
)
def test_rows_that_do_not_fit_the_base_are_refused(base, saved, tmp_path, ids, what):
    directory = tmp_path / "gaps"
    shutil.copytree(saved["few"], directory)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    config["trainable_token_indices"] = dict.fromkeys(config["trainable_token_indices"], ids)
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=what):
        Adapters(load(base), torch.float32, torch.device("cpu")).use(str(directory))
