"""The stages that one class goes through. Each runs in a process of its own and returns facts for the JSON file.

Directories of a class: `model` (the tiny model), `runs/<method>` (run directories).
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.short_chats import short_chats
from tests.conftest import make_tokenizer
from tools.tiny_models import sees_later_tokens, tiny_model
from tunesmith.configs.recipe import Recipe
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault, TunesmithError
from tunesmith.inference.batched_model import BatchedModel
from tunesmith.inference.model_runner import ModelRunner
from tunesmith.inference.sequence import Generation
from tunesmith.inference.types import Chunk, RequestRejected, Sampling
from tunesmith.launcher.backends.local import Local
from tunesmith.launcher.planning.prepare_run import Request, find_model, plan_of, prepare_rows
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import ErrorEvent, ExportEvent, KernelsEvent, StepEvent
from tunesmith.rundir.fence import claim
from tunesmith.rundir.paths import RunDir
from tunesmith.training import run_rank, worker
from tunesmith.training.export.export import export_from_checkpoint

NUM_STEPS = 3
NUM_CHATS = 12
NEW_TOKENS = 12
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "lora_rank": 4, "lora_alpha": 8},
    "full": {"kind": "full"},
    "qlora": {"kind": "qlora", "lora_rank": 4, "lora_alpha": 8},
}

WARM = (run_rank,)
"""Imported by the worker only when it needs them: here before processes are forked."""


class Failed(Exception):
    """The class failed this stage. reason: a key of REASONS."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


REASONS = {
    "transformers_build": "transformers cannot build a model of the class, or run it on tokens alone",
    "transformers_round_trip": "transformers does not load again what it saves",
    "proof": "the model proof failed",
    "plan": "the plan is refused",
    "training": "the run failed",
    "gate": "the export gate refused the export",
    "resume": "the resumed run differs from the uninterrupted one",
    "engine_refused": "the engine does not run the class",
    "answer": "the engine's greedy answer differs from transformers'",
    "memory": "the process was killed, or ran out of memory",
    "timeout": "the stage did not end in time",
    "exception": "another exception",
}
"""Why a class fails a stage."""


def build(name: str, root: Path) -> dict[str, Any]:
    """Write the tiny model, unless the class turns out not to be causal."""
    try:
        model = tiny_model(name)
        not_causal = sees_later_tokens(model)
    except Exception as error:
        raise Failed("transformers_build", _line(error)) from error
    if not_causal:
        return {"excluded": "not_causal"}
    make_tokenizer(root / "model")
    model.save_pretrained(root / "model")
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise Failed("transformers_round_trip", _line(error)) from error
    again, info = read
    odd = {key: sorted(map(str, names))[:3] for key, names in info.items() if names}
    tokens_1T = torch.arange(5, 45)[None]
    with torch.no_grad():
        first, second = (m.eval()(input_ids=tokens_1T, use_cache=False).logits for m in (model, again))
    if odd or not torch.equal(first, second):
        raise Failed("transformers_round_trip", json.dumps(odd) if odd else "the logits differ")
    return {
        "model_type": model.config.model_type,
        "num_params": sum(p.numel() for p in model.parameters()),
        "attention_interface": bool(model._supports_attention_backend),
    }


def prove_model(name: str, root: Path) -> dict[str, Any]:
    """The model proof on the loaded model, as before a run."""
    from tunesmith.modeling.loading.load import load_model
    from tunesmith.modeling.proof.compare import prove

    findings = prove(load_model(root / "model", dtype=torch.float32))
    facts = findings.as_json()
    if findings.loss is None:
        raise Failed("proof", json.dumps([c for c in facts["comparisons"] if not c["holds"]])[:1000])
    return facts


def train(method: str) -> Callable[[str, Path], dict[str, Any]]:
    """Return the stage that plans and trains a run of this method, with its export through the gate."""

    def stage(name: str, root: Path) -> dict[str, Any]:
        run = _planned(root, method)
        _work(run, 1)
        steps = list(read_events(run.events, StepEvent))
        (export,) = read_events(run.events, ExportEvent)
        kernels = [item["operation"] for event in read_events(run.events, KernelsEvent) for item in event.items or ()]
        gate = export.gate or {}
        if len(steps) != NUM_STEPS:
            raise Failed("training", f"{len(steps)} of {NUM_STEPS} steps")
        return {
            "losses": [step.loss for step in steps],
            "grad_norms": [step.grad_norm for step in steps],
            "kernels": sorted(set(kernels)),
            "form": export.form,
            "gate_difference": gate.get("max_logit_difference"),
            "greedy_equal": gate.get("greedy_equal"),
        }

    return stage


def resume(method: str) -> Callable[[str, Path], dict[str, Any]]:
    """Return the stage that repeats the last step from the checkpoint before it, and compares the weights."""

    def stage(name: str, root: Path) -> dict[str, Any]:
        whole, run = RunDir(root / "runs" / method), RunDir(root / "runs" / f"{method}-resumed")
        shutil.copytree(whole.root, run.root)
        shutil.rmtree(run.checkpoint(NUM_STEPS))
        shutil.rmtree(run.export)
        _work(claim(run), 2)
        weights = [load_file(r.checkpoint(NUM_STEPS) / "model.safetensors") for r in (whole, run)]
        shutil.rmtree(run.root)
        if weights[0].keys() != weights[1].keys():
            raise Failed("resume", "the checkpoints have other tensors")
        worst = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
        if not worst == 0.0:
            raise Failed("resume", f"the weights differ by up to {worst:.3g}")
        return {"difference": worst, "num_tensors": len(weights[0])}

    return stage


def merge(name: str, root: Path) -> dict[str, Any]:
    """Export the LoRA run as a whole model, through the gate."""
    try:
        export = export_from_checkpoint(RunDir(root / "runs" / "lora"), form="model", to=root / "merged")
    except RunFault as fault:
        raise Failed("gate", _line(fault)) from fault
    return {"gate_difference": export.gate["max_logit_difference"], "greedy_equal": export.gate["greedy_equal"]}


def serve(name: str, root: Path) -> dict[str, Any]:
    """Answer with the engine: the fully trained export, and the adapter on its base. transformers answers the same."""
    facts: dict[str, Any] = {"full": _compare_answers(root / "runs" / "full" / "export", None)}
    adapter = root / "runs" / "lora" / "export"
    try:
        facts["lora"] = _compare_answers(root / "model", adapter)
    except InputError as error:  # the engine does not apply adapters of this form: the merged model is served
        export = export_from_checkpoint(RunDir(root / "runs" / "lora"), form="model", to=root / "served")
        facts["lora"] = {**_compare_answers(export.path, None), "merged": " ".join(str(error).split())[:200]}
    return facts


def _compare_answers(directory: Path, adapter: Path | None) -> dict[str, Any]:
    tokenizer = Tokenizer.load(adapter or directory)
    prompts = [tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n") for text in _QUESTIONS]
    try:
        base = BatchedModel(directory, torch.device("cpu"), 4096, lambda: 1 << 30)
        if adapter is not None:
            base.adapters.use(str(adapter))
        answers = _engine_answers(base, str(adapter or ""), prompts, tokenizer)
    except RequestRejected as rejected:
        raise Failed("engine_refused", f"{rejected.code}: {rejected.message}") from rejected
    # As the engine: the cache of some classes does not give the results of a forward pass without it.
    has_cache = isinstance(base.runner, ModelRunner) or base.runner.has_cache
    expected = [_greedy(directory, adapter, prompt, tokenizer, has_cache) for prompt in prompts]
    for number, (answer, plain) in enumerate(zip(answers, expected, strict=True)):
        if answer != plain:
            raise Failed("answer", f"{'adapter' if adapter else 'model'}, prompt {number}: {answer} for {plain}")
    runner = "batched" if isinstance(base.runner, ModelRunner) else "cached" if base.runner.has_cache else "recomputed"
    return {"runner": runner, "prompts": len(prompts), "tokens": sum(map(len, answers))}


_QUESTIONS = ("Hi", "What about my invoice, which I have not received yet?")


def _greedy(
    directory: Path, adapter: Path | None, prompt: list[int], tokenizer: Tokenizer, use_cache: bool
) -> list[int]:
    """The greedy answer of plain transformers, with peft for an adapter."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    prompt_1P = torch.tensor([prompt])
    stops = list(tokenizer.stop_token_ids)
    written = model.eval().generate(
        input_ids=prompt_1P, attention_mask=torch.ones_like(prompt_1P), max_new_tokens=NEW_TOKENS, do_sample=False,
        use_cache=use_cache, eos_token_id=stops, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return [token for token in written if token not in stops]


def _engine_answers(
    base: BatchedModel, adapter: str, prompts: list[list[int]], tokenizer: Tokenizer
) -> list[list[int]]:
    """The answers of the engine, with all prompts in one batch."""
    sampling = Sampling(NEW_TOKENS)
    sequences = [
        Generation(number, "proof", adapter, prompt, tokenizer, sampling, NEW_TOKENS)
        for number, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        base.join(sequence)
    while base.active:
        for _, outputs in base.step()[0]:
            for output in outputs:
                if not isinstance(output, Chunk):
                    raise Failed("engine_refused", str(output))
    return [sequence.tokens[sequence.prompt_length :] for sequence in sequences]


def _planned(root: Path, method: str) -> RunDir:
    """Plan a run as `tunesmith train` does, and write its directory."""
    rows = root / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in short_chats(NUM_CHATS)))
    recipe = Recipe.model_validate({
        "name": "proof",
        "model": {"base": str(root / "model")},
        "method": METHODS[method],
        "data": {"train": [str(rows)], "max_seq_len": 192},
        "optimization": {"max_steps": NUM_STEPS, "global_batch_size": 2, "learning_rate": 1e-3, "epochs": 3},
        "checkpoint": {"every_steps": NUM_STEPS - 1},
        "evaluation": {"num_answers": 0},
        "resources": {"workers": 1},
        "precision": "fp32",
    })  # fmt: skip
    run = RunDir(root / "runs" / method)
    run.create()
    run = claim(run)
    request, backend = Request(root / "recipe.yaml", "", (), recipe), Local()
    try:
        model = find_model(recipe, root)
        data = prepare_rows(recipe, model, root, run, None, backend)
        plan_of(request, model, data, backend).write(run.plan)
    except TunesmithError as error:
        raise Failed("plan", str(error)) from error
    return run


def _work(run: RunDir, attempt: int) -> None:
    """Run the worker in this process."""
    sys.argv = ["worker", str(run.root), "--attempt", str(attempt)]
    if worker.main() == 0:
        return
    errors = list(read_events(run.events, ErrorEvent))
    message = "; ".join(filter(None, (errors[-1].what, errors[-1].where))) if errors else "no error event"
    raise Failed("gate" if "the export is refused" in message else "training", message)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


STAGES: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "build": build,
    "proof": prove_model,
    "lora": train("lora"),
    "lora_resumed": resume("lora"),
    "lora_merged": merge,
    "full": train("full"),
    "full_resumed": resume("full"),
    "qlora": train("qlora"),
    "served": serve,
}
"""In their order."""
NEEDS = {"lora_resumed": ("lora",), "lora_merged": ("lora",), "full_resumed": ("full",), "served": ("lora", "full")}
"""Stages that read what others wrote. All others need only `build`."""
