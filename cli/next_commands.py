"""The command lines that load an export in other programs, for the user's own paths."""

import re
import shlex
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.configs.sections.method import Lora


def commands_for_directory(path: Path, form: str, plan: Plan, run: Path) -> list[str]:
    """Return the lines for a Hugging Face directory. form: adapter or model. Empty for tasks that do not generate
    text."""
    if not plan.recipe.task_facts.is_causal or plan.recipe.task_facts.is_classifier:
        return []
    where, name = _quoted(path.absolute()), model_name(plan.recipe.name)
    vllm = f"vllm serve {where} --served-model-name {name}"
    if form == "adapter" and isinstance(plan.recipe.method, Lora):
        base, rank = _quoted(plan.model.base_directory), _vllm_rank(plan.recipe.method.lora_rank)
        vllm = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={where}"
    has_template = any((path / file).is_file() for file in ("chat_template.jinja", "chat_template.json"))
    question = "[{'role': 'user', 'content': 'Hello'}]" if has_template else "'Hello'"
    program = _PIPELINE.format(path=str(path.absolute()), question=question)
    lines = {
        "vLLM": vllm,
        "transformers": f"python -c {_quoted(program)}",
        "llama.cpp, Ollama": f"tunesmith export {_quoted(run)} --format gguf --quantization q8_0 --out {name}.gguf",
    }
    return _listed(lines)


def commands_for_gguf(path: Path, modelfile: Path) -> list[str]:
    """Return the lines for a GGUF file and its Modelfile."""
    name = model_name(path.stem)
    lines = {
        "llama.cpp": f"llama-server --jinja -m {_quoted(path.absolute())}",
        "Ollama": f"ollama create {name} -f {_quoted(modelfile.absolute())} && ollama run {name}",
    }
    return _listed(lines)


def model_name(name: str) -> str:
    """A name that vLLM and Ollama accept for a model."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"


_PIPELINE = (
    "from transformers import pipeline; "
    "print(pipeline('text-generation', {path!r})({question}, max_new_tokens=64)[0]['generated_text'])"
)
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""


def _vllm_rank(rank: int) -> int:
    return next((allowed for allowed in _VLLM_RANKS if allowed >= rank), rank)


def _listed(lines: dict[str, str]) -> list[str]:
    return ["to load it:", *(f"  {program + ':':<18} {line}" for program, line in lines.items())]


def _quoted(text: Path | str) -> str:
    return shlex.quote(str(text))
