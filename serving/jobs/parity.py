"""Parity of training and serving: a training row must have the same tokens as the same messages sent to the API.

Checked on the first rows of the training file: the prompt that `/chat/completions` renders from the messages before the
last trained one must be the tokens before it in training, and training must end it with a stop token of the served
model. Checked before a job is trained, and on the export before it is published.
"""

from collections.abc import Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.tasks import Task
from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import Document
from tunesmith.data.readers.sources import cut, read
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import Conversation, read_row
from tunesmith.data.tokenization.chat_template import is_supervised
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference import rendering
from tunesmith.inference.types import RequestRejected, Target
from tunesmith.launcher.planning.prepare_run import find_tokenizer
from tunesmith.serving.engine.rejections import as_rejection
from tunesmith.serving.jobs.fault import JobFault

NUM_ROWS = 16


def require_parity(recipe: Recipe, target: Target, today: date | None = None) -> int:
    """Compare the first rows; returns the number of compared rows. today: the date that a chat template prints, on both
    sides; None: the current one. Raises JobFault (`train_serve_mismatch`) with the
    number of the example and message."""
    today = today or date.today()
    tokenizer = find_tokenizer(recipe, Path.cwd(), today)
    task = "chat" if recipe.task_facts.is_paired else recipe.task
    splits, omitted = recipe.data.split_special_tokens, recipe.data.omitted_fields
    length = recipe.data.max_seq_len
    spec = EncodingSpec(task, length, "truncate", split_special_tokens=splits, omitted_fields=omitted)
    encoder = LanguageModelEncoder(tokenizer, spec)
    served = rendering.tokenizer_of(rendering.tokenizer_dir(target), today)
    slack = 0 if tokenizer.joins_pieces else 1  # these tokenizers insert a space where a text is split
    compared = 0
    for number, value in enumerate(_first_rows(Path(recipe.data.training_paths[0])), start=1):
        if recipe.data.deidentify is not None:
            value, _ = deidentified(value, recipe.data.deidentify)
        for row in _as_rows(value, recipe.task_facts):
            prepared = encoder.encode([row])[0]
            if not prepared.documents or prepared.outcome == "truncated":
                continue
            message, prompt = _prompt(row, task, target, splits, today)
            where = f"example {number}, message {message}"
            _compare(prepared.documents[-1], prompt, served, slack, where)
            compared += 1
    return compared


def _first_rows(path: Path) -> list[Any]:
    rows = (line.value for shard in cut(path) for line in read(shard) if not isinstance(line.value, Refusal))
    return list(islice(rows, NUM_ROWS))


def _as_rows(value: Any, task: Task) -> list[Any]:
    """The rows to compare: a preference pair becomes two conversations, as in training."""
    if not task.is_paired:
        return [value]
    prompt = [{**m, "weight": 0} if m.get("role") == "assistant" else m for m in value["input"]["messages"]]
    tools = {"tools": value["input"]["tools"]} if value["input"].get("tools") else {}
    return [{"messages": [*prompt, *value[key]], **tools} for key in ("preferred_output", "non_preferred_output")]


def _prompt(row: Any, task: str, target: Target, splits: bool, today: date) -> tuple[int, list[int]]:
    """(number of the last trained message, from 1; tokens of the prompt that the API renders for it)."""
    parsed = read_row(row, task)
    try:
        if not isinstance(parsed, Conversation):
            directory = rendering.tokenizer_dir(target)
            return 1, rendering.tokenize(directory, row["prompt"], split_special_tokens=splits)
        last = max(number for number, message in enumerate(parsed.messages) if is_supervised(message))
        messages, tools = parsed.messages[:last], parsed.tools
        return last + 1, rendering.render_target(target, messages, tools, split_special_tokens=splits, today=today)
    except RequestRejected as error:
        raise JobFault(
            "train_serve_mismatch", f"The API cannot render a training example: {as_rejection(error)}"
        ) from error


def _compare(document: Document, prompt: list[int], served: Tokenizer, slack: int, where: str) -> None:
    """served: the tokenizer of the export. Between the prompt and what is trained, only the template may write."""
    start, stop = document.supervised[-1]
    same, between = len(prompt) - slack, served.decode(document.tokens[len(prompt) : start], False)
    follows = served.template is not None and served.template.insertions.are(between)
    if document.tokens[:same] != prompt[:same] or (abs(len(prompt) - start) > slack and not (between and follows)):
        raise JobFault(
            "train_serve_mismatch",
            f"The model is not published: {where}: training and the API tokenize it differently "
            f"({_first_difference(document.tokens[:start], prompt)}).",
        )
    if document.tokens[stop - 1] not in served.stop_token_ids:
        raise JobFault(
            "train_serve_mismatch",
            f"The model is not published: {where}: it was trained without a stop token at its end.",
        )


def _first_difference(trained: Sequence[int], served: Sequence[int]) -> str:
    position = next((n for n, (a, b) in enumerate(zip(trained, served, strict=False)) if a != b), None)
    if position is None:
        return f"{len(trained)} tokens in training, {len(served)} in the API"
    return f"token {position + 1} is {trained[position]} in training, {served[position]} in the API"
