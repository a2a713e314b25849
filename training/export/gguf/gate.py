"""The gate of GGUF files: the file, read back by llama.cpp, against the Hugging Face export that it was written from.

Strings and prompts must give the same tokens; logits are compared at every position of some rows, and greedy answers
token by token. T tokens of a row, V vocabulary.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Backend
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import TunesmithError
from tunesmith.modeling.loading.load import quiet
from tunesmith.progress import advance
from tunesmith.training.export.gguf.judge import Findings, Questions, ask_llama_cpp, ask_transformers
from tunesmith.training.export.gguf.llama_cpp import find_library
from tunesmith.training.export.gguf.quantization import Quantization
from tunesmith.training.export.gguf.strings import comparison_strings
from tunesmith.training.export.gguf.vocabulary import Vocabulary
from tunesmith.training.export.gguf.write import Contents

NUM_STRINGS = 1000
ROW_TOKENS = 256
NEW_TOKENS = 32
TIE = 0.05
"""Greedy answers may differ where the two largest logits differ by less."""
_CONVERSATIONS = (
    [("user", "What does the licence say about copies?")],
    [("system", "You answer in one sentence."), ("user", "Name 3 rivers, e.g. the Rhine\nor the Po.")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "It's 12:45 - what's 17 * 23?")],
)


@dataclass(frozen=True)
class GateRows:
    """rows: token ids whose logits are compared. prompts: token ids to continue. texts: real texts, to tokenize."""

    rows: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    texts: Sequence[str] = ()


@dataclass
class GgufGate:
    """Result of the comparison. Perplexities: over all compared positions. greedy_equal, greedy_ties: answers that are
    equal, and those that differ first at a tie. fault: why the file did not pass; None: it passed."""

    quantization: str
    judge: str = ""
    strings: int = 0
    prompts: int = 0
    positions: int = 0
    mean_kl: float = 0.0
    max_kl: float = 0.0
    perplexity: float = 0.0
    perplexity_of_export: float = 0.0
    same_top_token: float = 0.0
    answers: int = 0
    greedy_equal: int = 0
    greedy_ties: int = 0
    largest_margin_at_difference: float | None = None
    fault: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the file passed."""
        return self.fault is None

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of the file divided by that of the export."""
        return self.perplexity / self.perplexity_of_export if self.perplexity_of_export else float("nan")

    def facts(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return {**asdict(self), "perplexity_ratio": self.perplexity_ratio, "passed": self.passed}

    def refuse(self, fault: str) -> None:
        """Record a fault, if it is the first."""
        self.fault = self.fault or fault


def run_gguf_gate(file: Path, export: Path, contents: Contents, quantization: Quantization, rows: GateRows) -> GgufGate:
    """Compare a file with the Hugging Face directory that it was written from. A difference does not raise; it is
    reported in `fault`. contents: as written to the file."""
    gate = GgufGate(quantization.name)
    with tempfile.TemporaryDirectory(prefix="tunesmith-gguf-") as temporary:
        backend = Backend.from_file(str(export / "tokenizer.json"))
        questions = _questions(export, backend, contents, rows)
        ask = ask_llama_cpp if find_library() is not None else ask_transformers
        try:
            findings = ask(file, questions, Path(temporary))
        except TunesmithError as error:
            gate.refuse(error.what)
            return gate
        gate.judge = findings.judge
        _compare_tokens(gate, findings, questions, backend, contents.vocabulary)
        if gate.passed:
            _compare_model(gate, findings, questions, export, quantization)
    return gate


def _questions(export: Path, backend: Backend, contents: Contents, rows: GateRows) -> Questions:
    vocabulary, limit = contents.vocabulary, contents.context_length
    written = json.loads((export / "tokenizer.json").read_text(encoding="utf-8"))
    added = [entry["content"] for entry in written["added_tokens"]]
    composed = "NFC" in json.dumps(written.get("normalizer"))
    strings = comparison_strings(NUM_STRINGS, added, rows.texts, composed=composed)
    eos = [vocabulary.ids["eos"]] if "eos" in vocabulary.ids else []
    return Questions(
        strings=[*strings, *(text for text in _rendered(export) if text)],
        texts=strings[:: len(strings) // 20],
        rows=[list(row[: min(limit, ROW_TOKENS)]) for row in rows.rows],
        prompts=[list(prompt) for prompt in rows.prompts if len(prompt) + NEW_TOKENS <= limit],
        stops=[*eos, *vocabulary.stops],
        new_tokens=NEW_TOKENS,
        threads=torch.get_num_threads(),
    )


def _rendered(export: Path) -> list[str]:
    """Chat prompts, as transformers renders them; those that the template rejects are left out."""
    tokenizer = AutoTokenizer.from_pretrained(export, local_files_only=True)
    texts = []
    for conversation in _CONVERSATIONS if tokenizer.chat_template else ():
        messages = [{"role": role, "content": content} for role, content in conversation]
        try:
            texts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template may reject a role with any error
            continue
    return texts


def _compare_tokens(
    gate: GgufGate, findings: Findings, questions: Questions, backend: Backend, vocabulary: Vocabulary
) -> None:
    if findings.template != vocabulary.template:
        gate.refuse("its chat template is not the export's")
    if findings.not_ending:
        names = ", ".join(vocabulary.tokens[token] for token in findings.not_ending)
        gate.refuse(f"llama.cpp would not end an answer at {names}")
    if findings.strings is None or findings.texts is None:
        gate.notes.append("tokens were not compared: only llama.cpp tokenizes as the file's readers do")
        return
    for texts, tokens, special in (
        (questions.strings, findings.strings, False),
        (questions.texts, findings.texts, True),
    ):
        encodings = backend.encode_batch(list(texts), add_special_tokens=special)
        for text, encoding, actual in zip(texts, encodings, tokens, strict=True):
            if encoding.ids != actual:
                where = " at the beginning or end" if special else ""
                difference = _difference(encoding.ids, actual, vocabulary)
                gate.refuse(f"{text[:60]!r} is tokenized differently{where}: {difference}")
                return
    gate.strings, gate.prompts = NUM_STRINGS, len(questions.strings) - NUM_STRINGS


def _difference(expected: Sequence[int], actual: Sequence[int], vocabulary: Vocabulary) -> str:
    pairs = zip(expected, actual, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(actual)))

    def shown(ids: Sequence[int]) -> str:
        return " ".join(vocabulary.tokens[token] for token in ids[place : place + 3]) or "nothing"

    return f"{shown(expected)} in training, {shown(actual)} in the file (pre-tokenizer {vocabulary.pre})"


def _compare_model(
    gate: GgufGate, findings: Findings, questions: Questions, export: Path, quantization: Quantization
) -> None:
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32, local_files_only=True).eval()

    def logits_of(tokens: Sequence[int]) -> np.ndarray:
        advance()
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()

    _compare_logits(gate, findings, questions.rows, logits_of, quantization)
    _compare_answers(gate, findings, questions, logits_of, quantization)


def _compare_logits(
    gate: GgufGate,
    findings: Findings,
    rows: Sequence[Sequence[int]],
    logits_of: Callable[[Sequence[int]], np.ndarray],
    quantization: Quantization,
) -> None:
    divergences, same, losses = [], [], []
    for row, file_TV in zip(rows, findings.rows(), strict=True):
        export_TV, file_TV = log_softmax(logits_of(row)), log_softmax(file_TV)
        if file_TV.shape != export_TV.shape:
            gate.refuse(f"its logits have {file_TV.shape[1]} tokens, the export's {export_TV.shape[1]}")
            return
        divergences.append((np.exp(export_TV) * (export_TV - file_TV)).sum(axis=1))
        same.append(export_TV.argmax(axis=1) == file_TV.argmax(axis=1))
        places, targets = np.arange(len(row) - 1), np.array(row[1:], dtype=np.int64)
        losses.append((-export_TV[places, targets], -file_TV[places, targets]))
    divergence = np.concatenate(divergences)
    gate.positions = len(divergence)
    gate.mean_kl, gate.max_kl = float(divergence.mean()), float(divergence.max())
    gate.same_top_token = float(np.concatenate(same).mean())
    expected, actual = (np.concatenate(side) for side in zip(*losses, strict=True))
    gate.perplexity_of_export, gate.perplexity = float(np.exp(expected.mean())), float(np.exp(actual.mean()))
    limit = quantization.max_mean_kl
    if limit is not None and not gate.mean_kl <= limit:  # `not <=`: True for NaN, too
        gate.refuse(f"its logits differ from the export's: mean divergence {gate.mean_kl:.3g} nats, limit {limit:g}")
    if not gate.perplexity_ratio <= quantization.max_perplexity_ratio:
        gate.refuse(
            f"its perplexity is {gate.perplexity_ratio:.3f} times the export's, limit "
            f"{quantization.max_perplexity_ratio:g}"
        )


def _compare_answers(
    gate: GgufGate,
    findings: Findings,
    questions: Questions,
    logits_of: Callable[[Sequence[int]], np.ndarray],
    quantization: Quantization,
) -> None:
    """An answer is the export's greedy answer if each token has the export's largest logit after those before it."""
    stops = set(questions.stops)
    for prompt, whole in zip(questions.prompts, findings.answers, strict=True):
        end = next((place + 1 for place, token in enumerate(whole) if token in stops), len(whole))
        answer = whole[:end]
        logits_TV = logits_of([*prompt, *answer])[len(prompt) - 1 : -1]
        best_T = logits_TV.argmax(axis=1)
        different = np.flatnonzero(best_T != np.array(answer))
        gate.answers += 1
        if not len(different):
            gate.greedy_equal += 1
            continue
        first = int(different[0])
        second, largest = np.sort(logits_TV[first])[-2:]
        margin = float(largest - second)
        known = gate.largest_margin_at_difference
        gate.largest_margin_at_difference = margin if known is None else max(known, margin)
        if margin < TIE:
            gate.greedy_ties += 1
        elif quantization.exact:
            gate.refuse(
                f"a greedy answer differs from the export's after {first} tokens, where its two largest logits differ "
                f"by {margin:.3g}"
            )


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    """Return log-probabilities, fp32 [T, V]."""
    shifted = logits_TV - logits_TV.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
