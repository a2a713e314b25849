"""The same rows, model, method and batch through Tunesmith and through what users would pick instead.

    python benchmarks/train.py [--method lora|full] [--steps 6] [--rounds 3] [--add] [--only tunesmith bare]

Every entrant runs in a fresh process, in turn, `rounds` times: LoRA of rank 16 on all linear layers, or all weights;
fp32, rows of at most 512 tokens, about 2,000 tokens a step, one thread. Measured: non-padding tokens a CPU second (all
steps but the first), peak memory, CPU seconds from the start of the process to the end of the first step, mean loss of
the last three steps. An entrant that is not installed is left out, with the reason. Ratios are of Tunesmith and the
other in the same round, median with lowest and highest. --add: to what results/NAME.json holds already, so that the
rounds may be spread over several calls.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine  # noqa: E402
import rows  # noqa: E402

Runs = dict[str, dict[str, float]]
"""One round: what was measured of each entrant."""

SEQUENCES, MAX_SEQ_LEN, RATE = 4, 512, 2e-4
LORA = {"kind": "lora", "lora_rank": 16, "lora_alpha": 32, "target_modules": "all-linear"}
ROWS_A_STEP = 11
"""Where rows are not packed: about as many tokens as four packed sequences."""


class Watch:
    """Notes a step: CPU seconds of this process so far, non-padding tokens, loss a token."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int, float]] = []
        self.peak_bytes = 0

    def step(self, num_tokens: int, loss: float) -> None:
        self.steps.append((time.process_time(), num_tokens, loss))
        self.peak_bytes = machine.peak_bytes()  # of training: what is saved or exported after it does not count

    def result(self) -> dict[str, float]:
        first, *later = self.steps
        tokens = sum(step[1] for step in later)
        losses = [step[2] for step in self.steps][-3:]
        return {
            "tokens_per_cpu_s": tokens / (self.steps[-1][0] - first[0]),
            "first_step_cpu_s": first[0],
            "peak_bytes": self.peak_bytes,
            "final_loss": sum(losses) / len(losses),
        }


def method_of(work: Path) -> str:
    return json.loads((work / "recipe.yaml").read_text(encoding="utf-8"))["method"]["kind"]


def tunesmith(work: Path, model: Path, steps: int, watch: Watch) -> None:
    """The worker as the launcher starts it, from a plan that the command line has made."""
    from tunesmith.training import worker
    from tunesmith.training.journal import Journal

    run = work / "run"
    run.mkdir()
    (run / "plan.json").write_text((work / "plan.json").read_text(encoding="utf-8"), encoding="utf-8")
    told = Journal.step

    def step(self: Journal, **fields: Any) -> None:
        watch.step(fields["num_tokens"], fields["loss"])
        told(self, **fields)

    Journal.step = step
    sys.argv = ["worker", str(run)]
    assert worker.main() == 0


def make_plan(work: Path, model: Path, steps: int, method: str) -> None:
    """Rows to tokens, and the plan: in a process of its own, as `tunesmith train` has it."""
    recipe = {
        "name": "benchmark",
        "model": {"base": str(model)},
        "task": "chat",
        "method": {"kind": "full"} if method == "full" else LORA,
        "data": {"train": [str(work / "rows.jsonl")], "max_seq_len": MAX_SEQ_LEN, "too_long": "drop"},
        "optimization": {"global_batch_size": SEQUENCES, "learning_rate": RATE, "schedule": "constant"}
        | {"warmup_fraction": 0.0, "max_steps": steps},
        "evaluation": {"num_answers": 0},
        "precision": "fp32",
    }
    (work / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "tunesmith.launcher.cli", "plan", str(work / "recipe.yaml"), "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    (work / "plan.json").write_text(made.stdout, encoding="utf-8")


def bare(work: Path, model: Path, steps: int, watch: Watch, *, rows_a_pass: int = 4) -> None:
    """A loop with torch and peft alone over the very tokens of Tunesmith's steps, padded in fours."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tunesmith.data.index import TokenIndex
    from tunesmith.data.loader import Loader

    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    loader = Loader(
        TokenIndex.open(Path(plan["data"]["train"]["index"])),
        seed=0,
        epochs=1,
        global_batch_size=SEQUENCES,
        micro_batch_size=SEQUENCES,
        rank=0,
        world_size=1,
        max_steps=steps,
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = loaded if method_of(work) == "full" else get_peft_model(loaded, lora)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    for step in range(1, steps + 1):
        batch = loader.step_batch(step)
        total = 0.0
        (flat,) = batch.micro_batches
        lengths = [int(length) for length in flat.lengths]
        tokens, labels = (torch.from_numpy(array).split(lengths) for array in (flat.tokens, flat.labels))
        for start in range(0, len(lengths), rows_a_pass):
            some = slice(start, start + rows_a_pass)
            ids = torch.nn.utils.rnn.pad_sequence(tokens[some], batch_first=True, padding_value=0)
            wanted = torch.nn.utils.rnn.pad_sequence(labels[some], batch_first=True, padding_value=-100)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens[some]], batch_first=True)
            logits = adapted(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
            (loss / batch.global_supervised_tokens).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.step(batch.num_tokens, total / batch.global_supervised_tokens)


def bare_unpadded(work: Path, model: Path, steps: int, watch: Watch) -> None:
    """The same loop, one row at a time: it pads nothing."""
    bare(work, model, steps, watch, rows_a_pass=1)


def trl(work: Path, model: Path, steps: int, watch: Watch, *, tuned: bool = False) -> None:
    """trl's SFTTrainer as its documentation sets it up (recomputed activations, padded), but in fp32: its bf16 is some
    50 times slower on such a CPU. Tuned: packed, activations kept."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    chats = [json.loads(line)["messages"] for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list([{"prompt": chat[:1], "completion": chat[1:]} for chat in chats])
    config = SFTConfig(
        output_dir=str(work / "trl"),
        max_steps=steps,
        max_length=MAX_SEQ_LEN,
        per_device_train_batch_size=SEQUENCES if tuned else ROWS_A_STEP,
        packing=tuned,
        gradient_checkpointing=not tuned,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        model_init_kwargs={"dtype": torch.float32},
    )
    counted = [0]

    class Note(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                watch.step(counted[0], float(logs["loss"]))
                counted[0] = 0

    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    peft_config = None if method_of(work) == "full" else lora
    trainer = SFTTrainer(str(model), args=config, train_dataset=dataset, peft_config=peft_config, callbacks=[Note()])
    collate = trainer.data_collator

    def counting(examples: Any) -> Any:
        batch = collate(examples)
        mask = batch.get("attention_mask")
        counted[0] += int(mask.sum()) if mask is not None else batch["input_ids"].numel()
        return batch

    trainer.data_collator = counting
    trainer.train()


def trl_tuned(work: Path, model: Path, steps: int, watch: Watch) -> None:
    trl(work, model, steps, watch, tuned=True)


def llamafactory(work: Path, model: Path, steps: int, watch: Watch) -> None:
    """LLaMA-Factory with neat packing, the best that its documentation knows; its own defaults for all else."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    columns = {"messages": "messages"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (work / "dataset_info.json").write_text(json.dumps({"rows": entry}), encoding="utf-8")
    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    a_step = plan["data"]["train"]["num_tokens"] // max(1, plan["data"]["train"]["num_samples"]) * SEQUENCES

    class Note(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                watch.step(a_step, float(logs["loss"]))

    arguments = {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": method_of(work),
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(work),
        "template": "chatml",
        "cutoff_len": MAX_SEQ_LEN,
        "packing": True,
        "neat_packing": True,
        "use_cpu": True,
        "output_dir": str(work / "factory"),
        "per_device_train_batch_size": SEQUENCES,
        "max_steps": steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "gradient_accumulation_steps": 1,
    }
    run_exp(arguments, callbacks=[Note()])


ENTRANTS = {
    "tunesmith": (tunesmith, ()),
    "bare": (bare, ()),
    "bare_unpadded": (bare_unpadded, ()),
    "trl": (trl, ("trl",)),
    "trl_tuned": (trl_tuned, ("trl",)),
    "llamafactory": (llamafactory, ("llamafactory",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--only", nargs="*", choices=list(ENTRANTS), default=list(ENTRANTS))
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--llamafactory", metavar="PYTHON", help="of an environment that has it; default: this one")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--name", help="of the files in benchmarks/results/; default: train, or train-full")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--inside", nargs=2, metavar=("ENTRANT", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        name, work = arguments.inside
        watch = Watch()
        ENTRANTS[name][0](Path(work), arguments.model.resolve(), arguments.steps, watch)
        (Path(work) / "result.json").write_text(json.dumps(watch.result()), encoding="utf-8")
        return
    name = arguments.name or ("train" if arguments.method == "lora" else "train-full")
    rounds, skipped = earlier(arguments.results / f"{name}.json") if arguments.add else ([], {})
    for who in arguments.only:
        skipped.pop(who, None)
        lacking = [package for package in ENTRANTS[who][1] if importlib.util.find_spec(package) is None]
        if lacking and not (who == "llamafactory" and arguments.llamafactory):
            skipped[who] = f"not installed: {', '.join(lacking)}"
    for _ in range(arguments.rounds):
        rounds.append({})
        for who in arguments.only:
            if who not in skipped:
                python = arguments.llamafactory if who == "llamafactory" else None
                outcome = measure(who, arguments.model.resolve(), arguments.steps, arguments.method, python)
                if isinstance(outcome, str):
                    skipped[who] = outcome
                else:
                    rounds[-1][who] = outcome
    report(name, arguments.results, [one for one in rounds if one], skipped, arguments.steps)


def earlier(path: Path) -> tuple[list[Runs], dict[str, str]]:
    """The rounds that were measured before, and who was left out."""
    if not path.is_file():
        return [], {}
    told = json.loads(path.read_text(encoding="utf-8"))
    return told["rounds"], told["skipped"]


def measure(name: str, model: Path, steps: int, method: str, python: str | None = None) -> dict[str, float] | str:
    """One run in a fresh process; the last line of its error where it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows.write_rows(work / "rows.jsonl", 20 * steps + 40)
        make_plan(work, model, steps, method)
        inside = ["--inside", name, folder, "--steps", str(steps), "--model", str(model)]
        print(f"{name} ...", flush=True)
        command = [python or sys.executable, str(Path(__file__).resolve()), *inside]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        if ended.returncode:
            return f"it failed: {(ended.stderr.strip().splitlines() or ['without a word'])[-1][:200]}"
        return json.loads((work / "result.json").read_text(encoding="utf-8"))


def report(name: str, directory: Path, rounds: list[Runs], skipped: dict[str, str], steps: int) -> None:
    keys = ("tokens_per_cpu_s", "peak_bytes", "first_step_cpu_s", "final_loss")
    runs = {who: [one[who] for one in rounds if who in one] for who in ENTRANTS}
    summary = {who: {key: machine.spread([run[key] for run in of]) for key in keys} for who, of in runs.items() if of}
    ratios = {who: ratios_of(rounds, who) for who in summary if who != "tunesmith"}
    ratios = {who: of for who, of in ratios.items() if of}
    table = [["", "tokens / CPU second", "peak memory", "CPU s to first step", "final loss", "Tunesmith's ratio"]]
    for who, of in summary.items():
        rate = of["tokens_per_cpu_s"]
        cells = [f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})"]
        cells += [f"{of['peak_bytes']['median'] / 1e9:.2f} GB", f"{of['first_step_cpu_s']['median']:.1f}"]
        faster = ""
        if who in ratios:
            speed, memory = ratios[who]["speed"], ratios[who]["memory"]
            faster = f"{speed['median']:.2f} x the speed ({speed['low']:.2f} to {speed['high']:.2f}), "
            faster += f"{memory['median']:.2f} of the memory"
        table.append([who, *cells, f"{of['final_loss']['median']:.4f}", faster])
    table += [[who, "skipped", why, "", "", ""] for who, why in skipped.items()]
    results = {
        "command": ["python", "benchmarks/train.py", *sys.argv[1:]],
        "steps": steps,
        "entrants": summary,
        "ratios": ratios,
        "skipped": skipped,
        "rounds": rounds,
    }
    machine.write(name, results, table, directory)


def ratios_of(rounds: list[Runs], who: str) -> dict[str, dict[str, float]]:
    """Tunesmith's speed and memory over the other's, of the rounds that have both."""
    pairs = [(one["tunesmith"], one[who]) for one in rounds if who in one and "tunesmith" in one]
    if not pairs:
        return {}
    return {
        "speed": machine.spread([ours["tokens_per_cpu_s"] / other["tokens_per_cpu_s"] for ours, other in pairs]),
        "memory": machine.spread([ours["peak_bytes"] / other["peak_bytes"] for ours, other in pairs]),
    }


if __name__ == "__main__":
    main()
