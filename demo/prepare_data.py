"""Turns the quiz of the ChatterBot corpus into chats, one JSON object a line: prepare_data.py TRIVIA.yml CHATS.jsonl

The same input always gives the same bytes. What is left out is counted and printed.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import yaml

# Plain ASCII quotes: the corpus mixes typographic and straight ones, which would only teach the model to guess.
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "…": "...", "\xa0": " "})
_UNSUITED = ("suicide", "testicle")


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    conversations = yaml.safe_load(source.read_text(encoding="utf-8"))["conversations"]
    chats, left_out, seen = [], Counter(), set()
    for turns in conversations:
        turns = [" ".join(str(turn).translate(_PLAIN).split()) for turn in turns]
        reason = why_not(turns, seen)
        if reason:
            left_out[reason] += 1
            continue
        question, answer = turns
        seen.add(question.lower())
        answer = answer.removesuffix(".")  # most answers have none
        chats.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "none"
    print(f"{target}: {len(chats)} chats of {len(conversations)} conversations (left out: {reasons})")


def why_not(turns: list[str], seen: set[str]) -> str | None:
    """Why a conversation is left out; None where it is taken."""
    if len(turns) != 2:
        return "not one question and one answer"
    if not all(turns):
        return "with an empty side"
    if not turns[0].endswith("?"):
        return "not a question"
    if turns[0].lower() in seen:
        return "asked before"
    if any(word in turns[0].lower() for word in _UNSUITED):
        return "unsuited for a demo"
    return None


if __name__ == "__main__":
    main()
