"""Fixtures: realistic run directories, written with the production classes (index, ledger, events, checkpoints)."""

import copy
import json
import math
import os
import random
import shutil
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.event_lines import an_event
from tunesmith.configs.plan import (
    BatchFacts,
    Choice,
    ComputeFacts,
    DataFacts,
    ModelFacts,
    Plan,
    SplitFacts,
)
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.summary import summarise
from tunesmith.data.index.token_index import IndexFacts, TokenIndex, write_index
from tunesmith.data.outcomes import OUTCOMES
from tunesmith.data.rows.receipts import Note, ReceiptWriter, RowOutcomes
from tunesmith.report.schedule import planned_rate
from tunesmith.rundir.atomic import write_json, write_text
from tunesmith.rundir.commit import committed_directory
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status

RECIPE = """\
name: support-bot
model: {base: models/smollm2-135m}
task: chat
method: {kind: lora, lora_rank: 16, lora_alpha: 32, target_modules: all-linear}
data: {train: [support.jsonl], validation: 0.1, max_seq_len: 512, too_long: truncate, packing: true, max_rejects: 5}
optimization: {learning_rate: 2.0e-4, schedule: cosine, warmup_fraction: 0.03, max_grad_norm: 1.0, epochs: 3}
checkpoint: {every_steps: 20, keep_last: 3}
evaluation: {every_steps: 20}
seed: 7
"""
ANSWERS = [
    (
        "My order has not come yet. What can I do?",
        "I am sorry to hear that. Please send me the number of your order and I will look where it is.",
        "You can contact the customer service team of the company you ordered from. They will be able to help you with",
        "I am sorry that your order is late. Please send me its number and I will look where it is.",
    ),
    (
        "How do I change my password?",
        "Open your account, choose Security, then Change password. The new one holds at once.",
        "To change your password, you can follow these steps:\n\n1. Open the settings\n2. Click on\n3. Click on",
        "Open your account, choose Security and then Change password.",
    ),
    (
        "Can I return a used printer?",
        "Within 14 days, yes, in its box.",
        "",
        "Yes, within 14 days, if you still have its box.",
    ),
]
REJECT = Note(
    "messages[1].role is 'asistant'",
    "write one of: system, user, assistant, tool",
    '{"messages": [{"role": "user", "content": "Hello"}, {"role": "asistant", "content": "Hi"}]}',
)


def write_safetensors(path: Path, tensors: dict[str, list[float]]) -> None:
    """Write fp32 vectors as a safetensors file."""
    header, offset = {}, 0
    for name, values in tensors.items():
        end = offset + 4 * len(values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    body = b"".join(struct.pack(f"<{len(values)}f", *values) for values in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@dataclass
class Example:
    """Writes a run directory step by step, as a worker would; one method per stage of a run."""

    run: RunDir
    num_rows: int = 480
    recipe_text: str = RECIPE
    attempt: int = 0
    step: int = 0
    supervised_tokens: int = 0
    clock: float = 1_790_000_000.0
    plan: Plan = field(init=False)
    index: TokenIndex = field(init=False)
    loader: Loader = field(init=False)

    def prepare(self, **changes: Any) -> "Example":
        """Write receipts, index and plan. changes: recipe sections, such as {"optimization": {...}}."""
        import yaml

        raw = yaml.safe_load(self.recipe_text)
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
        recipe = Recipe.model_validate(raw)
        self.run.create()
        write_text(self.run.recipe, self.recipe_text)
        self._write_rows()
        self.loader = Loader(
            self.index,
            seed=recipe.seed,
            epochs=recipe.optimization.epochs,
            global_batch_size=recipe.optimization.global_batch_size,
            micro_batch_size=4,
            max_steps=recipe.optimization.max_steps,
        )
        self.plan = self._plan(recipe)
        self.plan.write(self.run.plan)
        self.log = EventLog(self.run.events)
        return self

    def _write_rows(self) -> None:
        """Every 40th row is rejected, every 25th a duplicate, every 10th held out; two documents share a sample."""
        rng, number = random.Random(3), self.num_rows
        rows = np.arange(number)
        outcome = np.where(rows % 40 == 17, "rejected", np.where(rows % 55 == 3, "truncated", "kept"))
        outcome = np.where(rows % 25 == 9, "duplicate", outcome)
        trained = np.isin(outcome, ["kept", "truncated"])
        tokens = np.array([rng.randint(24, 200) for _ in rows]) * trained
        outcomes = RowOutcomes(
            split=(rows % 10 == 5).astype(np.int64),
            outcome=np.array([OUTCOMES.index(name) for name in outcome]),
            duplicate_of=np.where(rows % 25 == 9, rows - 1, -1),
            line=rows + 1,
            tokens=tokens,
            supervised=tokens // 3,
            lost_tokens=(outcome == "truncated") * 188,
            lost_supervised=(outcome == "truncated") * 60,
        )
        notes = {"rejected": REJECT, "truncated": Note("700 tokens, cut to 512", "")}
        with ReceiptWriter(self.run.receipts, outcomes) as writer:
            writer.write("support.jsonl", 0, number, {row: notes[f] for row, f in enumerate(outcome) if f in notes})
        train = [
            ([row % 384] * tokens[row], [t >= tokens[row] - tokens[row] // 3 for t in range(tokens[row])], row)
            for row in rows[trained & (outcomes.split == 0)].tolist()
        ]
        directory = self.run.root.parent / "index-train"
        self.index = write_index(directory, train, max_seq_len=512, bins=[number // 2 for number in range(len(train))])
        write_json(self.run.receipts / "summary.json", summarise(outcomes, {"train": IndexFacts.read(directory)}, 512))
        self.held_out = rows[trained & (outcomes.split == 1)].tolist()
        self.outcomes = outcomes

    def _plan(self, recipe: Recipe) -> Plan:
        total = self.loader.total_steps
        choices = [
            Choice(key="device", value="cpu", reason="no GPU is visible"),
            Choice(key="memory", value="", reason="cgroup limit", num_bytes=24 << 30),
            Choice(key="precision", value="fp32", reason="this CPU has no bf16 matrix units (AMX)"),
            Choice(
                key="micro_batch_size", value=4, reason="the largest that fits half of the memory", num_bytes=3 << 30
            ),
            Choice(key="total_steps", value=total, reason="220 packed sequences x 3 epochs / 8 per step, rounded up"),
        ]
        return Plan(
            tunesmith_version="0.1.0",
            recipe=recipe,
            model=ModelFacts(
                directory="/models/smollm2-135m",
                source="models/smollm2-135m",
                fingerprint="6d0e" * 16,
                model_type="llama",
                num_layers=30,
                hidden_size=576,
                vocab_size=49152,
                num_params=134_515_008,
                num_trained_params=4_884_480,
                tied_embeddings=True,
            ),
            data=DataFacts(
                fingerprint="a1b2" * 16,
                train=SplitFacts(
                    index=str(self.index.directory),
                    num_rows=self.index.num_documents,
                    num_samples=self.index.num_samples,
                    num_tokens=self.index.num_tokens,
                    supervised_tokens=self.index.supervised_tokens,
                    longest_tokens=200,
                ),
                validation=SplitFacts(
                    index=str(self.index.directory.with_name("index-validation")),
                    num_rows=len(self.held_out),
                    num_samples=len(self.held_out),
                    num_tokens=int(self.outcomes.tokens[self.held_out].sum()),
                    supervised_tokens=int(self.outcomes.supervised[self.held_out].sum()),
                    longest_tokens=200,
                ),
                num_rejected=int((self.outcomes.outcome == OUTCOMES.index("rejected")).sum()),
                num_dropped=0,
                num_truncated=int((self.outcomes.outcome == OUTCOMES.index("truncated")).sum()),
                num_duplicates=int((self.outcomes.duplicate_of >= 0).sum()),
            ),
            batch=BatchFacts(
                micro_batch_size=4,
                grad_accum_steps=2,
                steps_per_epoch=self.index.num_samples / recipe.optimization.global_batch_size,
                total_steps=total,
                warmup_steps=math.ceil(recipe.optimization.warmup_fraction * total),
                checkpoint_every_steps=20,
                evaluation_every_steps=20,
            ),
            compute=ComputeFacts(
                device="cpu",
                precision="fp32",
                gradient_checkpointing=False,
                world_size=1,
                threads_per_rank=2,
                memory_bytes=24 << 30,
                estimated_peak_bytes=3 << 30,
                checkpoint_bytes=58_700_000,
            ),
            choices=choices,
        )

    def emit(self, kind: str, **fields: Any) -> None:
        """Append an event with the time of the simulated clock."""
        self.log.write(an_event(kind, **{"time": round(self.clock, 3), **fields}))

    def start(self, step: int = 0, set_aside: list[dict] | None = None) -> "Example":
        """Start an attempt at step 0 or from the checkpoint of a step."""
        self.attempt += 1
        self.clock += 60.0 if self.attempt > 1 else 0.0
        self.emit("phase", phase="loading")
        path = str(self.run.checkpoint(step)) if step else None
        if step or set_aside:
            why = "the newest checkpoint that verifies"
            self.emit("resume", step=step, path=str(path), why=why, set_aside=set_aside or [])
        self.clock += 4.2
        start = {"attempt": self.attempt, "step": step, "world_size": 1, "pid": os.getpid(), "host": "workbench"}
        self.emit("start", **start, resumed_from=path)
        self.step = step
        samples = [s for number in range(1, step + 1) for s in self.loader.step_samples(number).tolist()]
        self.supervised_tokens = sum(int(self.index.sample_supervised[s]) for s in samples)
        self.ledger = Ledger(self.run, 0, self.attempt)
        self.status("training")
        return self

    def train(self, to: int, evaluate: bool = True) -> "Example":
        """Train up to and including step `to`, with a checkpoint and an evaluation every 20 steps."""
        self.emit("phase", phase="training")
        while self.step < to:
            self.train_step()
            if self.step % 20 == 0 and self.step < self.plan.batch.total_steps and evaluate:
                self.evaluate("during")
            if self.step % 20 == 0:
                self.checkpoint("schedule")
        self.status("training")
        return self

    def train_step(self, **changes: Any) -> None:
        batch = self.loader.step_batch(self.step + 1)
        self.step += 1
        rng = random.Random(self.step)
        self.ledger.write(self.step, batch.samples, batch.rows, batch.num_tokens, batch.supervised_tokens, (4, 1))
        self.supervised_tokens += batch.supervised_tokens
        seconds = 1.9 + rng.random() * 0.5
        self.clock += seconds
        step = {
            "step": self.step,
            "total_steps": self.plan.batch.total_steps,
            "epoch": batch.epoch,
            "loss": self.loss() + rng.gauss(0, 0.12),
            "learning_rate": planned_rate(self.plan, self.step),
            "grad_norm": 0.35 + 1.1 * math.exp(-self.step / 12) + rng.random() * 0.2,
            "num_tokens": batch.num_tokens,
            "supervised_tokens": batch.supervised_tokens,
            "token_accuracy": 0.42 + 0.2 * (1 - math.exp(-self.step / 30)) + rng.gauss(0, 0.01),
            "step_s": seconds,
            "tokens_per_s": batch.num_tokens / seconds,
            "peak_memory_bytes": int((2.1 + 0.5 * (1 - math.exp(-self.step / 5))) * 2**30),
            "skipped": False,
        }
        self.emit("step", **{**step, **changes})

    def loss(self) -> float:
        return 1.62 + 1.15 * math.exp(-self.step / 25)

    def evaluate(self, when: str, best: bool = True) -> "Example":
        """Write the scores of every held-out row and the evaluation event."""
        self.emit("phase", phase="evaluating")
        self.clock += 6.5
        scores = []
        for row in self.held_out:
            rng = random.Random(row)
            harder, gain = rng.gauss(0, 0.4), rng.gauss(1.0, 0.5)
            loss = 2.75 + harder - gain * (2.77 - self.loss())
            tokens = int(self.outcomes.supervised[row])
            correct = round(tokens * (0.75 - 0.12 * loss + 0.02 * rng.random()))
            scores.append({"id": row, "loss": loss, "num_tokens": tokens, "num_correct": correct})
        write_text(self.run.evaluation(self.step), "".join(json.dumps(score) + "\n" for score in scores))
        tokens = sum(score["num_tokens"] for score in scores)
        loss = sum(score["loss"] * score["num_tokens"] for score in scores) / tokens
        event = {
            "step": self.step,
            "when": when,
            "loss": loss,
            "perplexity": math.exp(loss),
            "seconds": 6.2,
            "best": best,
        }
        event |= {"token_accuracy": sum(score["num_correct"] for score in scores) / tokens}
        self.emit("evaluation", **event, num_examples=len(scores), num_tokens=tokens)
        self.emit("phase", phase="loading" if when == "before" else "training")
        return self

    def answer(self, when: str) -> "Example":
        self.clock += 5.0
        items = [
            {"row": row, "prompt": prompt, "reference": reference, "answer": before if when == "before" else after}
            for row, (prompt, reference, before, after) in zip(self.held_out, ANSWERS, strict=False)
        ]
        items = [{**item, "stopped": when == "after"} for item in items]
        self.emit("answers", step=self.step, when=when, items=items)
        return self

    def checkpoint(self, reason: str) -> None:
        """Commit a checkpoint and delete all but the newest three."""
        final, recipe = self.run.checkpoint(self.step), self.plan.recipe
        with committed_directory(final, self.attempt, step=self.step) as directory:
            moved = [0.001 * self.step * (number + 1) for number in range(64)]
            tensors = {f"layers.{n}.q_proj.lora_{ab}.weight": moved for n in range(4) for ab in "AB"}
            write_safetensors(directory / "model.safetensors", tensors)
            state = {"step": self.step, "supervised_tokens": self.supervised_tokens}
            fingerprints = {
                "model": self.plan.model.fingerprint,
                "data": self.plan.data.fingerprint,
                "method": recipe.method.model_dump_json(),
                "seed": str(recipe.seed),
                "global_batch_size": str(recipe.optimization.global_batch_size),
            }
            write_json(directory / "state.json", {"state": state, "fingerprints": fingerprints})
        num_bytes = 58_650_000 + self.step
        self.clock += 0.4
        self.emit("checkpoint", step=self.step, path=str(final), num_bytes=num_bytes, seconds=0.38, reason=reason)
        for path in sorted(self.run.checkpoints.glob("step-????????"))[:-3]:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()

    def export(self, **gate: Any) -> "Example":
        self.emit("phase", phase="exporting")
        self.clock += 9.0
        with committed_directory(self.run.export, self.attempt) as directory:
            write_safetensors(directory / "adapter_model.safetensors", {"lora_B": [0.1, 0.2]})
            write_json(directory / "adapter_config.json", {"r": 16})
        facts = {"max_logit_difference": 3.1e-5, "tolerance": 1e-3, "relative": False, "largest_logit": 31.0}
        facts |= {"greedy_equal": True, "rows": 4, "passed": True, **gate}
        self.emit("export", path=str(self.run.export), form="adapter", gate=facts)
        return self

    def end(self, outcome: str, exit_code: int, **error: Any) -> "Example":
        if error:
            self.emit("error", **error)
        self.emit("end", outcome=outcome, step=self.step, exit_code=exit_code, seconds=300.0)
        self.status(outcome, exit_code)
        return self

    def status(self, phase: str, exit_code: int | None = None) -> None:
        total = self.plan.batch.total_steps
        eta = (total - self.step) * 2.1 if phase == "training" else None
        Status(phase, self.step, total, self.attempt, started=time.time(), eta_s=eta, exit_code=exit_code).write(
            self.run.status
        )

    def finish(self) -> "Example":
        """Complete the run successfully after its last step."""
        self.checkpoint("end")
        self.evaluate("after").answer("after").export()
        return self.end("done", 0)


def make_example(root: Path, **options: Any) -> Example:
    return Example(RunDir(root / "support-bot"), **options)


def finished_example(root: Path) -> Example:
    """A finished run that was killed at steps 52 and 60; the second resume found a damaged checkpoint."""
    example = make_example(root).prepare().start().evaluate("before").answer("before")
    example.train(52)
    example.start(40)
    example.emit("warning", message="2 validation rows are near-duplicates of training rows", code="near_duplicates")
    example.train(60)
    aside = [{"path": str(example.run.checkpoint(60)) + ".corrupt", "why": "model.safetensors does not match its hash"}]
    example.start(40, set_aside=aside)
    return example.train(example.plan.batch.total_steps).finish()


@pytest.fixture
def example(tmp_path) -> Example:
    """A prepared run that has not started."""
    return make_example(tmp_path).prepare()


@pytest.fixture(scope="session")
def _finished_once(tmp_path_factory) -> Example:
    return finished_example(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def finished(_finished_once, tmp_path) -> Example:
    """A private copy of a finished run."""
    shutil.copytree(_finished_once.run.root.parent, tmp_path, dirs_exist_ok=True)
    run, index = RunDir(tmp_path / "support-bot"), TokenIndex.open(tmp_path / "index-train")
    text = run.plan.read_text(encoding="utf-8").replace(str(_finished_once.index.directory), str(index.directory))
    run.plan.write_text(text, encoding="utf-8")
    example = copy.copy(_finished_once)
    example.run, example.index = run, index
    return example
