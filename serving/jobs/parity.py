"""What was trained is what is served: the tokens of training rows against those of the same messages through the route.

For the first rows of the training file: the prompt that `/chat/completions` renders of a row's messages up to its last
trained answer has to be what training put before that answer, token by token, and training has to end the answer with a
token that ends one in use. That is asked before a job is trained, and again of the export before it is published.
"""

from collections.abc import Sequence
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
from tunesmith.inference import rendering
from tunesmith.inference.types import RequestRejected, Target
from tunesmith.launcher.planning.prepare_run import find_tokenizer
from tunesmith.serving.engine.rejections import as_rejection
from tunesmith.serving.jobs.fault import JobFault

NUM_ROWS = 16


def require_parity(recipe: Recipe, target: Target) -> int:
    """The number of answers compared. Raises JobFault (`train_serve_mismatch`) naming example and message."""
    tokenizer = find_tokenizer(recipe, Path.cwd())
    task = "chat" if recipe.task_facts.is_paired else recipe.task
    encoder = LanguageModelEncoder(tokenizer, EncodingSpec(task, recipe.data.max_seq_len, "truncate"))
    served = rendering.tokenizer_of(rendering.tokenizer_dir(target))
    slack = 0 if tokenizer.joins_pieces else 1  # such a tokenizer puts a space where a text is cut
    compared = 0
    for number, value in enumerate(_first_rows(Path(recipe.data.train[0])), start=1):
        if recipe.data.deidentify is not None:
            value, _ = deidentified(value, recipe.data.deidentify)
        for row in _as_rows(value, recipe.task_facts):
            prepared = encoder.encode([row])[0]
            if not prepared.documents or prepared.outcome == "truncated":
                continue
            message, prompt = _prompt(row, task, target)
            where = f"example {number}, message {message}"
            _compare(prepared.documents[0], prompt, served.stop_token_ids, slack, where)
            compared += 1
    return compared


def _first_rows(path: Path) -> list[Any]:
    rows = (line.value for shard in cut(path) for line in read(shard) if not isinstance(line.value, Refusal))
    return list(islice(rows, NUM_ROWS))


def _as_rows(value: Any, task: Task) -> list[Any]:
    """A pair of answers as the two conversations that training makes of it."""
    if not task.is_paired:
        return [value]
    asked = [{**m, "weight": 0} if m.get("role") == "assistant" else m for m in value["input"]["messages"]]
    tools = {"tools": value["input"]["tools"]} if value["input"].get("tools") else {}
    return [{"messages": [*asked, *value[key]], **tools} for key in ("preferred_output", "non_preferred_output")]


def _prompt(row: Any, task: str, target: Target) -> tuple[int, list[int]]:
    """The number of the row's last trained message, and the tokens that the route puts before it."""
    parsed = read_row(row, task)
    try:
        if not isinstance(parsed, Conversation):
            return 1, rendering.tokenize(rendering.tokenizer_dir(target), row["prompt"])
        last = max(number for number, message in enumerate(parsed.messages) if is_supervised(message))
        return last + 1, rendering.render_target(target, parsed.messages[:last], parsed.tools)
    except RequestRejected as error:
        raise JobFault(
            "train_serve_mismatch", f"The route cannot render a training example: {as_rejection(error)}"
        ) from error


def _compare(document: Document, prompt: list[int], stops: Sequence[int], slack: int, where: str) -> None:
    start, stop = document.supervised[-1]
    same = len(prompt) - slack
    if document.tokens[:same] != prompt[:same] or abs(len(prompt) - start) > slack:
        raise JobFault(
            "train_serve_mismatch",
            f"The model is not published: at {where} the tokens of training are not those of the route "
            f"({_first_difference(document.tokens[:start], prompt)}).",
        )
    if document.tokens[stop - 1] not in stops:
        raise JobFault(
            "train_serve_mismatch",
            f"The model is not published: at {where} the answer was trained without a token that ends it.",
        )


def _first_difference(trained: Sequence[int], served: Sequence[int]) -> str:
    place = next((n for n, (a, b) in enumerate(zip(trained, served, strict=False)) if a != b), None)
    if place is None:
        return f"{len(trained)} tokens in training, {len(served)} through the route"
    return f"token {place + 1} is {trained[place]} in training, {served[place]} through the route"
