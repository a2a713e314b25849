"""`tunesmith chat`: chat with a run or a model."""

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
        str | None, typer.Argument(metavar="PROMPT", help="Omit it for an interactive chat.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A system message at the start of the conversation.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0: greedy decoding.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling: probability mass to sample from.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Chat with a run or a model.

    With a PROMPT, stream one answer to standard output. Without it, start an interactive chat; an empty line or Ctrl-D
    ends it.
    """
    from tunesmith.errors import InputError
    from tunesmith.launcher.runs.find import find_target

    if as_json and prompt is None:
        raise InputError("--json needs a prompt", where="tunesmith chat", remedy="tunesmith chat MODEL PROMPT --json")
    target = find_target(model)
    if sys.stderr.isatty():
        typer.secho("loading the model ...", dim=True, err=True)
    with redirect_stdout(sys.stderr):  # libraries may print on import; standard output is for answers only
        from tunesmith.evaluation.subject import find_subject
        from tunesmith.inference.generate import generate
        from tunesmith.inference.types import Sampling

        subject = find_subject(target)
        if subject.plan is not None and not subject.plan.recipe.task_facts.is_causal:
            raise InputError(
                f"a model of the task {subject.plan.recipe.task} does not support chat",
                where=subject.name,
                remedy="score it with `tunesmith evaluate RUN --data FILE`, or load its export/ with transformers",
            )
        tokenizer: Any = subject.tokenizer
        splits = subject.plan is None or subject.plan.recipe.data.split_special_tokens
        loaded = subject.load().model

    def answer(messages: list[dict[str, str]], on_text: Callable[[str], None] | None) -> Any:
        return generate(
            loaded,
            tokenizer,
            _prompt_tokens(tokenizer, messages, splits),
            Sampling(max_new_tokens, temperature, top_p, seed),
            on_text=on_text,
        )

    messages = [{"role": "system", "content": system}] if system else []
    if prompt is None:
        _chat_interactively(messages, answer)
        return
    messages.append({"role": "user", "content": prompt})
    if as_json:
        reply = answer(messages, None)
        typer.echo(json.dumps({"text": reply.text, "num_tokens": len(reply.tokens), "stopped": reply.stopped}))
        return
    _stream(messages, answer)


def _chat_interactively(messages: list[dict[str, str]], answer: Callable[..., Any]) -> None:
    while True:
        try:
            text = input("you: " if sys.stdin.isatty() else "").strip()
        except EOFError:
            text = ""
        if not text:
            return
        messages.append({"role": "user", "content": text})
        reply = _stream(messages, answer)
        messages.append({"role": "assistant", "content": reply.text})


def _stream(messages: list[dict[str, str]], answer: Callable[..., Any]) -> Any:
    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    reply = answer(messages, write)
    sys.stdout.write("\n")
    if not reply.stopped and sys.stderr.isatty():
        typer.secho("(truncated at --max-new-tokens)", dim=True, err=True)
    return reply


def _prompt_tokens(tokenizer: Any, messages: list[dict[str, str]], splits: bool) -> list[int]:
    """Tokens of the conversation up to the start of the answer; without a chat template, of the last message only.
    splits: whether special tokens in messages are text."""
    from tunesmith.data.encoders.language_model import prompt_tokens
    from tunesmith.data.refusal import Refusal
    from tunesmith.data.tokenization.rendering_check import require_prompt_shown
    from tunesmith.errors import InputError

    try:
        if tokenizer.template is None:
            return tokenizer.encode_text_alone(messages[-1]["content"], split_special_tokens=splits)
        require_prompt_shown(tokenizer.template, messages, None)
        text = tokenizer.template.render(messages, add_generation_prompt=True)
        return prompt_tokens(tokenizer, text, messages, None, split_special_tokens=splits)
    except Refusal as refusal:
        raise InputError(refusal.reason, where="the conversation", remedy=refusal.remedy) from refusal
