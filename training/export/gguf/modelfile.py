"""An Ollama Modelfile: how a GGUF file is to be prompted. Ollama's templates are Go's, so the chat template is
translated by what it renders, and left out where that is not exact: Ollama then uses one that it knows for the model,
if any.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tunesmith.data.tokenization.tokenizer_files import read_json

Render = Callable[[Sequence[tuple[str, str]], bool], str]
"""The text of a conversation of (role, content); True: up to where the answer begins. Raises if a role is not
accepted."""

_A, _B, _C, _S = "alpha beta", "gamma 1", "delta", "omega two"
_PARAMETERS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
"""Ollama's names of sampling settings in generation_config.json."""
DEFAULT_CONTEXT = 4096
"""Ollama's context length in tokens, if the Modelfile does not state one."""


@dataclass(frozen=True)
class Turns:
    """What a chat template prints before and after each role's content, and what begins the answer. system: the system
    prompt that it adds to a conversation without one; None: it adds none."""

    begin: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    answer: str
    system: str | None

    def render(self, conversation: Sequence[tuple[str, str]]) -> str:
        """Return the prompt of a conversation, as the template would."""
        if self.system is not None and conversation[0][0] != "system":
            conversation = [("system", self.system), *conversation]
        turns = "".join(self.before[role] + content + self.after[role] for role, content in conversation)
        return self.begin + turns + self.answer

    def as_go(self) -> str:
        """Return the template in Go's language, as Ollama renders it."""
        parts = []
        for place, role in enumerate(self.before):
            test = "if" if place == 0 else "else if"
            before, after = _go_text(self.before[role]), _go_text(self.after[role])
            parts.append(f'{{{{- {test} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
        roles = "".join(parts)
        turns = "{{- range .Messages }}" + roles + "{{- end }}{{- end }}"
        return _go_text(self.begin) + turns + _go_text(self.answer)


def _go_text(text: str) -> str:
    """A literal in a Go template: as a string expression, since whitespace next to `{{-` would be lost."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def turns_of(render: Render, bos: str) -> Turns | None:
    """Return the turns of a chat template; None if it does not print turns one after another. bos: what llama.cpp puts
    before the prompt by itself."""
    try:
        turns = _derived(render)
        if turns is None or not all(turns.render(one) == render(one, True) for one in _checks(turns)):
            return None
    except Exception:  # a template may reject a role with any error
        return None
    return replace(turns, begin=turns.begin.removeprefix(bos))


def _checks(turns: Turns) -> list[list[tuple[str, str]]]:
    one, other = [("user", _A)], [("user", "x"), ("assistant", "y y"), ("user", "3")]
    plain = [one, [*one, ("assistant", _B), ("user", _C)], other, [*other, ("assistant", _C), *one]]
    return plain + ([[("system", _S), *each] for each in plain] if "system" in turns.before else [])


def _derived(render: Render) -> Turns | None:
    """Derive the turns from conversations that grow by one."""
    one: list[tuple[str, str]] = [("user", _A)]
    two = [*one, ("assistant", _B)]
    texts = [render(one, False), render(two, False), render([*two, ("user", _C)], False)]
    whole = render(one, True)
    if not all(longer.startswith(text) for text, longer in (*pairwise(texts), (texts[0], whole))):
        return None
    first, after_user = texts[0].split(_A)
    before_assistant, after_assistant = texts[1].removeprefix(texts[0]).split(_B)
    before_user, _ = texts[2].removeprefix(texts[1]).split(_C)
    if not first.endswith(before_user):
        return None
    turns = Turns(
        begin=first.removesuffix(before_user),
        before={"user": before_user, "assistant": before_assistant},
        after={"user": after_user, "assistant": after_assistant},
        answer=whole.removeprefix(texts[0]),
        system=None,
    )
    return _with_system(turns, render)


def _with_system(turns: Turns, render: Render) -> Turns:
    """Add the role system, if the template prints it as a turn, and the system prompt that the template adds."""
    try:
        text = render([("system", _S), ("user", _A)], False)
    except Exception:  # a template may reject the role with any error
        return turns
    user = turns.before["user"] + _A + turns.after["user"]
    if text.count(_S) != 1 or not text.endswith(user):
        return turns
    before, after = text.removesuffix(user).split(_S)
    begin, system = turns.begin, None
    if before.startswith(begin):
        before = before.removeprefix(begin)
    elif begin.startswith(before) and begin.endswith(after):
        begin, system = "", begin[len(before) : len(begin) - len(after)]
    else:
        return turns
    before_by_role, after_by_role = {"system": before, **turns.before}, {"system": after, **turns.after}
    return Turns(begin, before_by_role, after_by_role, turns.answer, system)


def modelfile(directory: Path, file: str, *, context: int, add_bos: bool, stops: Sequence[str], note: str) -> str:
    """Return the Modelfile of a GGUF file. directory: of the Hugging Face export. file: name of the GGUF file, in the
    same directory as the Modelfile. context: tokens. add_bos: llama.cpp begins prompts with BOS. stops: texts of the
    tokens that end an answer. note: first comment."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    lines = [f"# {note}", f"FROM ./{file}"]
    if tokenizer.chat_template:

        def render(conversation: Sequence[tuple[str, str]], answer: bool) -> str:
            messages = [{"role": role, "content": content} for role, content in conversation]
            text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
            return text

        prints_date = "strftime_now" in str(tokenizer.chat_template)  # it would be the date of the export
        turns = None if prints_date else turns_of(render, (tokenizer.bos_token or "") if add_bos else "")
        if turns is None:
            lines.append(
                "# The chat template has no exact translation into Ollama's language: Ollama uses the one that"
            )
            lines.append("# it knows for this model, if any. llama-server --jinja renders the original.")
        else:
            lines.append(f"TEMPLATE {_quoted(turns.as_go())}")
            if turns.system is not None:
                lines.append(f"SYSTEM {_quoted(turns.system)}")
    lines.append(f"PARAMETER num_ctx {context}")
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stops]
    lines += [f"PARAMETER {name} {value}" for name, value in _sampling(directory).items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""'


def _sampling(directory: Path) -> dict[str, Any]:
    settings = read_json(directory / "generation_config.json")
    return {
        parameter: settings[key] for key, parameter in _PARAMETERS.items() if isinstance(settings.get(key), int | float)
    }
