"""What a GGUF file computes, by llama.cpp in a process of its own, or by transformers where llama.cpp is not installed.

The process: python -m tunesmith.training.export.gguf.judge DIRECTORY, with request.json there; it writes result.json
and row-N.npy. No torch in it.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import RunFault, TunesmithError
from tunesmith.training.export.gguf.llama_cpp import Library, Model, find_library

_REQUEST, _RESULT = "request.json", "result.json"


@dataclass(frozen=True)
class Questions:
    """strings: to tokenize alone. texts: to tokenize with the tokens that begin and end a text. rows: token ids whose
    logits are compared. prompts: token ids to continue by `new_tokens`. stops: ids that should end an answer."""

    strings: Sequence[str]
    texts: Sequence[str]
    rows: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    stops: Sequence[int]
    new_tokens: int
    threads: int


@dataclass(frozen=True)
class Findings:
    """What the file gives. judge: who read it. strings, texts: tokens; None if the judge does not tokenize as llama.cpp
    does. logits: a file per row, fp32 [T, V]. answers: greedy, not cut at stop tokens. template: chat template.
    not_ending: stop tokens that do not end an answer in llama.cpp."""

    judge: str
    strings: list[list[int]] | None
    texts: list[list[int]] | None
    logits: list[Path]
    answers: list[list[int]]
    template: str | None
    not_ending: list[int]

    def rows(self) -> Iterator[np.ndarray]:
        """Logits of each row, fp32 [T, V]."""
        for path in self.logits:
            yield np.load(path)


def ask_llama_cpp(file: Path, questions: Questions, directory: Path) -> Findings:
    """Return llama.cpp's findings. directory: empty, for the files of the process. Raises RunFault if it fails."""
    request = {"file": str(file.absolute()), **asdict(questions)}
    (directory / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-m", "tunesmith.training.export.gguf.judge", str(directory)]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RunFault(f"llama.cpp does not read it: {_ending(process)}", where=str(file))
    findings = json.loads((directory / _RESULT).read_text(encoding="utf-8"))
    logits = [directory / f"row-{number}.npy" for number in range(len(questions.rows))]
    return Findings(logits=logits, **findings)


def _ending(process: subprocess.CompletedProcess[str]) -> str:
    """How the process ended, with the last line that it printed."""
    lines = process.stderr.strip().splitlines()
    last = f": {lines[-1].strip()}" if lines else ""
    if process.returncode < 0:
        return f"its process ended with {signal.Signals(-process.returncode).name}{last}"
    return lines[0].strip() if lines else f"its process ended with code {process.returncode}"


def ask_transformers(file: Path, questions: Questions, directory: Path) -> Findings:
    """Return the findings of transformers' reader of GGUF files: logits and answers, no tokens. directory: as above.
    Raises TunesmithError if it cannot read the file."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    from tunesmith.modeling.loading.gguf import convert

    convert(file, directory / "converted")
    model = AutoModelForCausalLM.from_pretrained(directory / "converted", dtype=torch.float32).eval()
    logits = []
    with torch.inference_mode():
        for number, row in enumerate(questions.rows):
            logits.append(directory / f"row-{number}.npy")
            np.save(logits[-1], model(input_ids=torch.tensor([list(row)])).logits[0].float().numpy())
        answers = []
        for prompt in questions.prompts:
            tokens = torch.tensor([list(prompt)])
            output = model.generate(  # type: ignore[operator]
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=questions.new_tokens,
                do_sample=False,
                eos_token_id=None,
            )
            answers.append(output[0, tokens.shape[1] :].tolist())
    field = GGUFReader(file).fields.get("tokenizer.chat_template")
    template = None if field is None else str(field.contents())
    return Findings("transformers (llama.cpp is not installed)", None, None, logits, answers, template, [])


def _answer(directory: Path, library: Library) -> None:
    request: dict[str, Any] = json.loads((directory / _REQUEST).read_text(encoding="utf-8"))
    model, threads = Model(library, Path(request["file"])), request["threads"]
    rows, prompts, new_tokens = request["rows"], request["prompts"], request["new_tokens"]
    context = model.context(max(map(len, rows), default=1), 1, threads)
    for number, row in enumerate(rows):
        np.save(directory / f"row-{number}.npy", context.row_logits(row))
    longest = max(map(len, prompts), default=0) + new_tokens
    answers = model.context(longest, len(prompts), threads).greedy(prompts, new_tokens) if prompts else []
    findings = {
        "judge": f"llama.cpp ({library.name})",
        "strings": [model.tokenize(text, add_special=False) for text in request["strings"]],
        "texts": [model.tokenize(text, add_special=True) for text in request["texts"]],
        "answers": answers,
        "template": model.chat_template,
        "not_ending": [token for token in request["stops"] if not model.ends_generation(token)],
    }
    (directory / _RESULT).write_text(json.dumps(findings), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Answer the request in a directory and return the exit code."""
    library = find_library()
    if library is None:
        print("llama.cpp is not installed", file=sys.stderr)
        return 2
    try:
        _answer(Path(arguments[0]), library)
    except TunesmithError as error:
        print(error.what, file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
