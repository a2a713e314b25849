"""`tunesmith chat`: talk to a run or a model."""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from tunesmith.cli.arguments import Json, Target


def chat(
    model: Target,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Without it: a conversation.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A system message at the start of the conversation.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from this share of the likeliest.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Talk to a run or a model.

    With a PROMPT: one answer, as it is written, on standard output. Without: a conversation; an empty line or Ctrl-D
    ends it.
    """
    from tunesmith.errors import InputError
    from tunesmith.launcher.runs.find import find_target

    if as_json and prompt is None:
        raise InputError("--json needs a prompt", where="tunesmith chat", remedy="tunesmith chat MODEL PROMPT --json")
    target = find_target(model)
    if sys.stderr.isatty():
        typer.secho("loading the model ...", dim=True, err=True)
    with redirect_stdout(sys.stderr):  # libraries may print as they are imported: standard output is for answers
        from tunesmith.evaluation.subject import find_subject
        from tunesmith.inference.generate import generate
        from tunesmith.inference.types import Sampling

        subject = find_subject(target)
        if subject.plan is not None and not subject.plan.recipe.task_facts.is_causal:
            raise InputError(
                f"a run of the task {subject.plan.recipe.task} cannot be talked to",
                where=subject.name,
                remedy="`tunesmith evaluate RUN --data FILE` scores it on rows; its export/ answers under transformers",
            )
        tokenizer: Any = subject.tokenizer
        loaded = subject.load().model

    def answer(messages: list[dict[str, str]], on_text: Callable[[str], None] | None) -> Any:
        return generate(
            loaded,
            tokenizer,
            _prompt_tokens(tokenizer, messages),
            Sampling(max_new_tokens, temperature, top_p, seed),
            on_text=on_text,
        )

    messages = [{"role": "system", "content": system}] if system else []
    if prompt is None:
        _talk(messages, answer)
        return
    messages.append({"role": "user", "content": prompt})
    if as_json:
        given = answer(messages, None)
        typer.echo(json.dumps({"text": given.text, "num_tokens": len(given.tokens), "stopped": given.stopped}))
        return
    _stream(messages, answer)


def _talk(messages: list[dict[str, str]], answer: Callable[..., Any]) -> None:
    while True:
        try:
            said = input("you: " if sys.stdin.isatty() else "").strip()
        except EOFError:
            said = ""
        if not said:
            return
        messages.append({"role": "user", "content": said})
        given = _stream(messages, answer)
        messages.append({"role": "assistant", "content": given.text})


def _stream(messages: list[dict[str, str]], answer: Callable[..., Any]) -> Any:
    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    given = answer(messages, write)
    sys.stdout.write("\n")
    if not given.stopped and sys.stderr.isatty():
        typer.secho("(cut off: it did not stop by itself; --max-new-tokens allows more)", dim=True, err=True)
    return given


def _prompt_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The conversation up to where the answer starts; for a model without a chat template the last message as it is."""
    if tokenizer.template is None:
        return tokenizer.encode(messages[-1]["content"], add_special_tokens=True)
    from tunesmith.data.encoders.language_model import prompt_tokens

    text = tokenizer.template.render(messages, add_generation_prompt=True)
    return prompt_tokens(tokenizer, text, messages, None)
