"""Split a conversation into one for each assistant turn that the chat template shows differently once it is an earlier
turn: most templates of thinking models remove the thinking from all turns but the last.

    u1 a1(thinking) u2 a2(thinking)   ->   u1 a1(thinking)          trained: a1
                                           u1 a1 u2 a2(thinking)    trained: a2

Turns that a later text shows as if they were the last (between calls and results, for example) share it. Each is
trained once, after the prompt that a server renders for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.encoders.conversation import rendered
from tunesmith.data.outcomes import DROPPED, REJECTED, TRUNCATED, Prepared
from tunesmith.data.tokenization.chat_template import ChatTemplate, Message, is_supervised
from tunesmith.data.tokenization.rendering_check import THINKING, Omission


def split_turns(template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None) -> list[list[Message]]:
    """Return the conversations to train, in the order of their last turns; the one given if it need not be split. In
    each, turns that another one trains have weight 0. Raises TemplateFailure."""
    trained = [number for number, message in enumerate(messages) if is_supervised(message)]
    if len(messages) == trained[-1] + 1 and len(trained) == 1:
        return [list(messages)]
    groups: list[tuple[int, list[int]]] = []
    """The number of messages of each conversation, and the turns that it trains; the last one first."""
    end, text, turns = len(messages), *_rendered(template, messages, tools)
    for number in reversed(trained):
        alone, own = _rendered(template, messages[: number + 1], tools)
        # Shown here as if it were the last turn, with the same text before it?
        if number not in turns or text[: turns[number]] != alone[: own[number]]:
            end, text, turns = number + 1, alone, own
        if not groups or groups[-1][0] != end:
            groups.append((end, []))
        groups[-1][1].append(number)
    if len(groups) == 1 and end == len(messages):
        return [list(messages)]
    return [_training(messages[:end], numbers) for end, numbers in reversed(groups)]


def _rendered(
    template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None
) -> tuple[str, dict[int, int]]:
    """The text of a conversation, and the end of each turn in it."""
    rendering = rendered(template, messages, tools)
    return rendering.text, {number: stop for number, _, stop in rendering.turns}


def _training(messages: Sequence[Message], numbers: Sequence[int]) -> list[Message]:
    """The messages with weight 0 for all answers but these."""
    return [
        {**message, "weight": 0} if is_supervised(message) and number not in numbers else message
        for number, message in enumerate(messages)
    ]


def not_shown(messages: Sequence[Message], omissions: Sequence[Omission]) -> list[Omission]:
    """Return what none of the conversations of a row shows. omissions: of all of them. messages: of the row; thinking
    of its trained turns is shown in the conversation that trains them."""
    distinct = dict.fromkeys(omissions)
    return [
        omission
        for omission in distinct
        if not (
            omission.by_design
            and omission.kind == THINKING
            and omission.message is not None
            and is_supervised(messages[omission.message])
        )
    ]


def joined(results: Sequence[Prepared]) -> Prepared:
    """Combine the results of the conversations of one row. If one is rejected, so is the row; if some are dropped, it
    is truncated."""
    if len(results) == 1:
        return results[0]
    for result in results:
        if result.outcome == REJECTED:
            return result
    outcomes = {result.outcome for result in results}
    changed = {DROPPED, TRUNCATED} & outcomes
    outcome = (DROPPED if outcomes == {DROPPED} else TRUNCATED) if changed else results[0].outcome
    omitted = {kind: count for result in results for kind, count in result.omitted.items()}
    inserted: dict[str, int] = {}
    for result in results:
        for text, count in result.inserted.items():
            inserted[text] = inserted.get(text, 0) + count
    return replace(
        results[0],
        outcome=outcome,
        documents=[document for result in results for document in result.documents],
        lost_tokens=sum(result.lost_tokens for result in results),
        lost_supervised=sum(result.lost_supervised for result in results),
        reason="; ".join(dict.fromkeys(result.reason for result in results if result.reason)),
        omitted=omitted,
        inserted=inserted,
        num_special=max(result.num_special for result in results),
    )
