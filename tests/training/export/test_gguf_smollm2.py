"""SmolLM2-135M with a merged adapter as GGUF, compared with transformers by llama.cpp itself."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend

from tests.training.export.test_export import LORA, Trained
from tunesmith.training.export.files import write_companion_files, write_model
from tunesmith.training.export.gguf import write
from tunesmith.training.export.gguf.export import write_quantized
from tunesmith.training.export.gguf.gate import GateRows, GgufGate, run_gguf_gate
from tunesmith.training.export.gguf.quantization import quantization_of
from tunesmith.training.export.gguf.quantizers import require_quantizer

TOPICS = (
    "the moon,cats,Paris,rivers,bread,taxes,music,chess,rain,gold,"
    "ships,the law,sleep,wine,birds,salt,trains,snow,time,books"
)
TEXT = Path(__file__).parents[3] / "docs" / "tasks.md"


@pytest.fixture(scope="module")
def merged(smollm2, tmp_path_factory) -> Path:
    """The files of a Hugging Face export of a trained adapter, merged; its own gate is the subject of other tests."""
    root = tmp_path_factory.mktemp("smollm2")
    trained = Trained(smollm2, root / "run", LORA).train(steps=1, learning_rate=5e-3)
    (root / "merged").mkdir()
    write_model(trained.model, trained.plan, root / "merged", torch.float32)
    write_companion_files(trained.plan, trained.tokenizer, root / "merged")
    return root / "merged"


@pytest.fixture(scope="module")
def backend(merged) -> Backend:
    return Backend.from_file(str(merged / "tokenizer.json"))


def gate_of(merged: Path, file: Path, name: str, rows: GateRows) -> GgufGate:
    """Write the export in a quantization and compare it."""
    quantization = quantization_of(name)
    contents = write_quantized(merged, file, quantization, require_quantizer(quantization, 1), "demo")
    gate = run_gguf_gate(file, merged, contents, quantization, rows)
    print(f"{name}: {gate.facts()}")
    return gate


def test_f16_gives_twenty_greedy_answers_and_a_thousand_strings_of_transformers(merged, backend, tmp_path):
    text = TEXT.read_text(encoding="utf-8")
    prompts = [f"<|im_start|>user\nTell me about {t}.<|im_end|>\n<|im_start|>assistant\n" for t in TOPICS.split(",")]
    rows = GateRows([backend.encode(text).ids[:128]], [backend.encode(prompt).ids for prompt in prompts], [text])
    gate = gate_of(merged, tmp_path / "f16.gguf", "f16", rows)
    assert gate.fault is None
    assert "llama.cpp" in gate.judge
    assert (gate.answers, gate.greedy_equal + gate.greedy_ties) == (20, 20)
    assert gate.greedy_equal >= 15  # the rest differs first where the two largest logits differ by less than 0.05
    assert gate.mean_kl < 1e-4
    assert gate.strings == 1000


@pytest.mark.parametrize(("name", "mean_kl", "ratio"), [("q8_0", 0.01, 1.02), ("q4_k_m", 0.2, 1.10)])
def test_quantized_weights_stay_close_to_the_export(name, mean_kl, ratio, merged, backend, tmp_path):
    ids = backend.encode(TEXT.read_text(encoding="utf-8")).ids
    gate = gate_of(merged, tmp_path / f"{name}.gguf", name, GateRows([ids[:192], ids[1000:1064]], []))
    assert gate.fault is None
    assert 1e-4 < gate.mean_kl <= mean_kl
    assert 0.9 < gate.perplexity_ratio <= ratio
    assert (tmp_path / f"{name}.gguf").stat().st_size < {"q8_0": 150e6, "q4_k_m": 110e6}[name]


@pytest.mark.soak  # short versions on a tiny model: test_gguf.py
def test_the_gate_refuses_queries_and_keys_in_the_order_of_transformers(merged, backend, tmp_path, monkeypatch):
    changed = write.changed

    def planted(name, weight, config, known):
        return weight if ".layers.7.self_attn.k_proj" in name else changed(name, weight, config, known)

    monkeypatch.setattr(write, "changed", planted)
    ids = backend.encode(TEXT.read_text(encoding="utf-8")).ids
    gate = gate_of(merged, tmp_path / "planted.gguf", "q8_0", GateRows([ids[:48]], []))
    assert "its logits differ" in (gate.fault or "")


@pytest.mark.soak
def test_the_gate_refuses_another_pre_tokenizer(merged, tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.training.export.gguf.vocabulary.pre_tokenizer_name", lambda _: "smollm")
    gate = gate_of(merged, tmp_path / "planted.gguf", "q8_0", GateRows([], []))
    assert "is tokenized differently" in (gate.fault or "")
    assert "pre-tokenizer smollm" in (gate.fault or "")
