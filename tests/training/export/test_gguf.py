"""GGUF exports of tiny models, read back by llama.cpp; what has no equivalent there, and what the disk refuses."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import tokenizers
import torch
import transformers
from typer.testing import CliRunner

from tests.conftest import CHAT_TEMPLATE, ROOT, make_tokenizer
from tests.training.export.test_export import LORA, Trained
from tunesmith.cli.main import app
from tunesmith.errors import InputError, RunFault
from tunesmith.training.export.gguf import export as gguf_export
from tunesmith.training.export.gguf import write
from tunesmith.training.export.gguf.architectures import architecture_of
from tunesmith.training.export.gguf.export import export_gguf, write_quantized
from tunesmith.training.export.gguf.gate import GateRows, run_gguf_gate
from tunesmith.training.export.gguf.modelfile import turns_of
from tunesmith.training.export.gguf.quantization import quantization_of
from tunesmith.training.export.gguf.quantizers import KQuantizer, require_quantizer
from tunesmith.training.export.gguf.vocabulary import pre_tokenizer_name


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory) -> Trained:
    """A run with a LoRA checkpoint."""
    trained = Trained(tiny_llama, tmp_path_factory.mktemp("gguf") / "run", LORA).train()
    trained.save(6)
    return trained


@pytest.fixture
def base(tiny_llama, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_command_writes_a_verified_file_a_modelfile_and_the_next_commands(trained, tmp_path):
    out = tmp_path / "demo model.gguf"
    call = ["export", str(trained.run.root), "--format", "gguf", "--quantization", "f16", "--out", str(out)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "1,000 strings and 3 chat prompts give the same tokens" in result.output
    assert "read back by llama.cpp (" in result.output
    assert f"llama-server --jinja -m '{out}'" in result.output
    assert f"ollama create demo-model -f '{out}.Modelfile'" in result.output
    text = Path(f"{out}.Modelfile").read_text()
    assert "FROM ./demo model.gguf\n" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert '{{- else if eq .Role "user" }}{{ "<|im_start|>user\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}' in text
    assert leftovers(tmp_path) == [out.name, f"{out.name}.Modelfile"]

    before = out.read_bytes()
    again = CliRunner().invoke(app, call)
    assert isinstance(again.exception, InputError)
    assert "exists already" in again.exception.what
    forced = CliRunner().invoke(app, [*call, "--force", "--json"])
    facts = json.loads(forced.stdout)
    assert facts["gate"]["passed"]
    assert facts["gate"]["greedy_equal"] == facts["gate"]["answers"] > 0
    assert out.read_bytes() == before


def test_without_llama_cpp_our_reader_is_the_judge_and_k_quants_are_refused(trained, tmp_path, monkeypatch):
    for place in ("gate", "quantizers"):
        monkeypatch.setattr(f"tunesmith.training.export.gguf.{place}.find_library", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = export_gguf(trained.run, "f32", tmp_path / "a.gguf")
    assert result.gate.passed
    assert result.gate.judge == "transformers (llama.cpp is not installed)"
    assert result.gate.notes == ["tokens were not compared: only llama.cpp tokenizes as the file's readers do"]
    assert result.gate.mean_kl < 1e-9
    with pytest.raises(InputError, match=r"needs llama\.cpp's quantizer") as caught:
        export_gguf(trained.run, "q4_k_m", tmp_path / "b.gguf")
    assert "pip install xllamacpp" in (caught.value.remedy or "")


def test_a_refused_file_is_set_aside(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "changed", lambda name, weight, config, known: weight)
    with pytest.raises(RunFault, match="the GGUF file is refused: its logits differ"):
        export_gguf(trained.run, "f16", tmp_path / "a.gguf")
    assert leftovers(tmp_path) == ["a.gguf.refused", "a.gguf.refused.json"]
    assert json.loads((tmp_path / "a.gguf.refused.json").read_text())["passed"] is False


def test_the_gate_refuses_another_pre_tokenizer(base, tmp_path, monkeypatch):
    """Digits one by one; the tiny tokenizer has no tokens of two digits, so it learns one."""
    written = json.loads((base / "tokenizer.json").read_text())
    written["model"]["vocab"]["12"] = written["model"]["vocab"].pop(next(reversed(written["model"]["vocab"])))
    written["model"]["merges"][-1] = ["1", "2"]
    (base / "tokenizer.json").write_text(json.dumps(written))
    monkeypatch.setattr("tunesmith.training.export.gguf.vocabulary.pre_tokenizer_name", lambda _: "smollm")
    contents = write_quantized(base, tmp_path / "a.gguf", quantization_of("f32"), None, "demo")
    gate = run_gguf_gate(tmp_path / "a.gguf", base, contents, quantization_of("f32"), GateRows([], []))
    assert "is tokenized differently" in (gate.fault or "")
    assert "pre-tokenizer smollm" in (gate.fault or "")


@pytest.mark.parametrize("fault", ["space", "write"])
def test_a_full_disk_leaves_nothing(fault, trained, tmp_path, monkeypatch):
    if fault == "space":
        monkeypatch.setattr(gguf_export.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    else:
        monkeypatch.setenv("TUNESMITH_FAULT", "export.gguf=raise")
        monkeypatch.setattr("tunesmith.rundir.faults._fault_counts", {})
    with pytest.raises(RunFault, match=r"needs 0\.1 GB of disk space" if fault == "space" else "No space left"):
        export_gguf(trained.run, "q8_0", tmp_path / "a.gguf")
    assert leftovers(tmp_path) == []


def test_a_name_that_is_taken_meanwhile_is_kept(trained, tmp_path, monkeypatch):
    out = tmp_path / "a.gguf"
    gate = gguf_export.run_gguf_gate

    def take_the_name(*arguments):
        out.write_text("another's")
        return gate(*arguments)

    monkeypatch.setattr(gguf_export, "run_gguf_gate", take_the_name)
    with pytest.raises(InputError, match="exists already"):
        export_gguf(trained.run, "f16", out)
    assert out.read_text() == "another's"
    assert leftovers(tmp_path) == ["a.gguf"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--format", "gguf"], "a GGUF export needs a file"),
        (["--format", "gguf", "--out", "a", "--to", "b"], "is a file, not a directory"),
        (["--format", "onnx"], "unknown value 'onnx'"),
        (["--quantization", "f16"], "--quantization is for GGUF files"),
        (["--format", "gguf", "--quantization", "q3", "--out", "a"], "unknown value 'q3'"),
    ],
)
def test_inconsistent_options_are_errors(options, error, trained):
    result = CliRunner().invoke(app, ["export", str(trained.run.root), *options])
    assert isinstance(result.exception, InputError)
    assert error in result.exception.what


def test_added_tokens_are_tokens_in_llama_cpp(base, tmp_path):
    """A special and an ordinary one, in rows that the embedding got for them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([transformers.AddedToken("<tool>", special=True), transformers.AddedToken("Zürich")])
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(390, mean_resizing=False)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    quantization = quantization_of("f32")
    contents = write_quantized(base, tmp_path / "a.gguf", quantization, None, "demo")
    assert contents.vocabulary.tokens[384:] == ["<tool>", "Zürich", *(f"[PAD{number}]" for number in range(386, 390))]
    row = [5, 384, 6, 385, 7]
    gate = run_gguf_gate(
        tmp_path / "a.gguf", base, contents, quantization, GateRows([row], [row], ["in Zürich <tool>"])
    )
    assert gate.fault is None
    assert gate.strings == 1000


def test_a_class_is_refused_by_name():
    with pytest.raises(InputError, match="the class GPT2LMHeadModel is not among"):
        architecture_of("GPT2LMHeadModel", transformers.GPT2Config())
    with pytest.raises(InputError, match="computes LlamaForCausalLM with silu, the model uses gelu"):
        architecture_of("LlamaForCausalLM", transformers.LlamaConfig(hidden_act="gelu"))
    window = transformers.Qwen2Config(use_sliding_window=True, max_window_layers=0)
    with pytest.raises(InputError, match="sliding window"):
        architecture_of("Qwen2ForCausalLM", window)


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tiny_llama):
    written = json.loads((tiny_llama / "tokenizer.json").read_text())
    assert pre_tokenizer_name(written) == "gpt-2"
    with pytest.raises(InputError, match="normalizes text"):
        pre_tokenizer_name({**written, "normalizer": {"type": "Lowercase"}})
    with pytest.raises(InputError, match=r"not one of llama\.cpp's: Whitespace"):
        pre_tokenizer_name({**written, "pre_tokenizer": {"type": "Whitespace"}})


@pytest.mark.skipif(shutil.which("llama-quantize") is None, reason="needs llama.cpp's llama-quantize on PATH")
def test_rows_are_quantized_as_by_llama_quantize(wide_llama, tmp_path):
    """The same bytes: llama.cpp's mixture of types and its function."""
    program = KQuantizer("llama-quantize", program=shutil.which("llama-quantize"))
    for name in ("q4_k_m", "q6_k"):
        quantization = quantization_of(name)
        write_quantized(wide_llama, tmp_path / "ours.gguf", quantization, require_quantizer(quantization, 2), "demo")
        write_quantized(wide_llama, tmp_path / "theirs.gguf", quantization, program, "demo")
        assert tensors_of(tmp_path / "ours.gguf") == tensors_of(tmp_path / "theirs.gguf")


def tensors_of(file: Path) -> dict[str, tuple[str, bytes]]:
    from gguf import GGUFReader

    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(file).tensors}


SPACE = {
    "llama-2": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
    },
    "gemma": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
    },
    "metaspace": {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    },
}
"""How tokenizers with byte fallback treat spaces."""


@pytest.mark.parametrize("kind", SPACE)
def test_tokenizers_with_byte_fallback_are_compared(kind, base, tmp_path):
    """llama.cpp has the spaces of Llama 2 and Gemma; Metaspace adds none before a text that begins with one."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    names = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=384, special_tokens=names)
    lines = (ROOT / "LICENSE").read_text(encoding="utf-8").split()
    backend.train_from_iterator((f"▁{word}" for word in lines), trainer)
    written = json.loads(backend.to_str()) | SPACE[kind]
    written["added_tokens"] = [token for token in written["added_tokens"] if not token["content"].startswith("<0x")]
    (base / "tokenizer.json").write_text(json.dumps(written))
    quantization = quantization_of("f32")
    contents = write_quantized(base, tmp_path / "a.gguf", quantization, None, "demo")
    assert contents.vocabulary.space_prefix == (kind != "gemma")
    gate = run_gguf_gate(tmp_path / "a.gguf", base, contents, quantization, GateRows([[5, 300, 301]], []))
    assert (gate.fault is None) == (kind != "metaspace")
    assert gate.strings == (0 if kind == "metaspace" else 1000)


TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "header": "{{ bos }}{% for m in messages %}"
    "{{ '<h>' + m['role'] + '</h>\n\n' + m['content'] | trim + '<eot>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}",
    "no system": "{{ bos }}{% for m in messages %}{% if m['role'] == 'system' %}{{ 1 / 0 }}{% endif %}"
    "{{ '<t>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + m['content'] + '</t>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<t>model\n' }}{% endif %}",
    "default system": "{% if messages[0]['role'] != 'system' %}{{ '<s>You help.</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '</' + m['role'][0] + '>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_templates_render_what_the_chat_template_renders(name):
    template = jinja2.Environment().from_string(TEMPLATES[name])

    def render(conversation, answer: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in conversation]
        return template.render(messages=messages, add_generation_prompt=answer, bos="<bos>")

    turns = turns_of(render, "<bos>")
    assert turns is not None
    assert turns.system == ("You help." if name == "default system" else None)
    assert ("system" in turns.before) == (name != "no system")
    conversation = [("user", "one"), ("assistant", "two"), ("user", "three")]
    assert ("<bos>" if "bos" in TEMPLATES[name] else "") + turns.render(conversation) == render(conversation, True)


def test_a_template_that_is_no_list_of_turns_is_not_translated():
    def numbered(conversation, answer: bool) -> str:
        return "".join(f"{place}{role}{content};" for place, (role, content) in enumerate(conversation))

    assert turns_of(numbered, "") is None


COMMON = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 256}
LONGROPE = {
    **YARN,
    "rope_type": "longrope",
    "short_factor": [1 + 0.1 * i for i in range(8)],
    "long_factor": [2 + 0.3 * i for i in range(8)],
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
CLASSES = {
    "llama": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama-3": ("Llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN, "head_dim": 32}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 32, "rope_parameters": YARN}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 6}),
    "phi3": ("Phi3", {"sliding_window": 128, "partial_rotary_factor": 0.5}),
    "phi3-longrope": (
        "Phi3",
        {"sliding_window": None, "original_max_position_embeddings": 512, "rope_parameters": LONGROPE},
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", CLASSES)
def test_llama_cpp_computes_every_class_as_transformers_does(name, tmp_path):
    kind, settings = CLASSES[name]
    config = getattr(transformers, f"{kind}Config" if kind != "Gemma3" else "Gemma3TextConfig")(
        **{**COMMON, **settings}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.float32)
    for key, weight in model.named_parameters():
        if "norm" in key or key.endswith("bias"):
            weight.data.add_(torch.randn_like(weight) * 0.1)
    make_tokenizer(tmp_path)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(3, 384, (210,)).tolist()
    quantization = quantization_of("f32")
    contents = write_quantized(tmp_path, tmp_path / "a.gguf", quantization, None, "phi3-demo")
    gate = run_gguf_gate(tmp_path / "a.gguf", tmp_path, contents, quantization, GateRows([tokens], [tokens[:10]]))
    assert gate.fault is None
    assert gate.mean_kl < 1e-5
    assert gate.greedy_equal + gate.greedy_ties == 1


@pytest.mark.soak
def test_the_printed_line_for_transformers_answers(trained, tmp_path):
    """The command that `tunesmith export` prints, run by a shell as a user would."""
    import shlex
    import subprocess
    import sys

    result = CliRunner().invoke(app, ["export", str(trained.run.root), "--merge", "--to", str(tmp_path / "model")])
    line = next(line for line in result.output.splitlines() if "transformers:" in line).split(":", 1)[1]
    command = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.stdout.strip()
