"""Short conversations of unequal length. Imports nothing: also for machines that have no more than torch."""

from typing import Any

TOPICS = [
    "refund",
    "invoice",
    "password",
    "delivery",
    "warranty",
    "account",
    "printer",
    "battery",
    "contract",
    "update",
]


def short_chats(count: int) -> list[dict[str, Any]]:
    """Return question-answer conversations, as rows of the task chat."""
    rows = []
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)]
        answer = f"For case {number}, the {topic} is handled today. " * (1 + number % 4)
        question = {"role": "user", "content": f"Question {number}: what about my {topic}?"}
        rows.append({"messages": [question, {"role": "assistant", "content": answer.strip()}]})
    return rows
