"""Data preparation from rows to index: receipts add up, errors are reported, and cached data is verified."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data.spans import render_with_spans
from tunesmith.configs.recipe import Recipe
from tunesmith.data.cache import cache_root
from tunesmith.data.check import check_recipe
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.prepare import prepare, prepare_file
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.readers import lines as lines_module
from tunesmith.errors import ExitCode, InputError
from tunesmith.rundir.paths import RunDir


def recipe_of(train, task="chat", seed=7, **data):
    data = {"train": [str(path) for path in train], "max_seq_len": 256, **data}
    return Recipe(name="t", model={"base": "m"}, task=task, method={"kind": "full"}, data=data, seed=seed)  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path, tiny, cache):
    """run(train files, **data options) -> (DataFacts, RunDir)."""

    def prepared(*train, task="chat", seed=7, **data):
        directory = RunDir(tmp_path / "run")
        recipe = recipe_of(train, task, seed, **data)
        return prepare(recipe, tiny, recipe_dir=tmp_path, cache=cache, run=directory), directory

    return prepared


def receipts(run: RunDir, name: str) -> list[dict]:
    path = run.receipts / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def check_receipts(facts, run: RunDir, rows_read: int) -> dict:
    """Check that every row has one receipt, and that receipts, rejects, summary, facts and indexes are consistent."""
    every = receipts(run, "train") + receipts(run, "validation")
    assert sorted(receipt["row"] for receipt in every) == list(range(rows_read))
    summary = json.loads((run.receipts / "summary.json").read_text())
    assert summary["rows"] == rows_read == sum(summary["fates"].values())
    assert Counter(receipt["fate"] for receipt in every) == Counter({k: v for k, v in summary["fates"].items() if v})
    rejected = [receipt for receipt in every if receipt["fate"] == "rejected"]
    rejects = receipts(run, "rejects")
    assert sorted(r["row"] for r in rejects) == sorted(r["row"] for r in rejected)
    assert all(r["reason"] and r["remedy"] and r["line"] for r in rejects)
    assert facts.num_rejected == len(rejected)
    for name, split in (("train", facts.train), ("validation", facts.validation)):
        own = [r for r in receipts(run, name) if r["fate"] in ("kept", "masked", "truncated")]
        assert all(receipt["split"] == name for receipt in receipts(run, name))
        if split is None:
            assert not own
            continue
        index = TokenIndex.open(Path(split.index))
        assert split.num_rows == len(own)
        assert split.num_samples == index.num_samples
        assert split.num_tokens == index.num_tokens == sum(r["tokens"] for r in own)
        assert split.supervised_tokens == index.supervised_tokens == sum(r["supervised_tokens"] for r in own)
        tokens = Counter()
        for number in range(index.num_documents):
            document = index.document(number)
            tokens[document.rows[0]] += len(document.tokens)
        assert tokens == {r["row"]: r["tokens"] for r in own}
        in_samples = sorted(row for s in range(index.num_samples) for row in index.sample(s).rows)
        assert in_samples == sorted(index.document(n).rows[0] for n in range(index.num_documents))
        assert int(index.sample_tokens[:].max()) <= index.max_seq_len
    return summary


def good(number: int) -> dict:
    return {
        "messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"answer {number}"}]
    }


def test_prepare_writes_indexes_and_a_receipt_for_every_row(run, write_jsonl, chat_rows):
    facts, directory = run(write_jsonl("a.jsonl", chat_rows), validation=0.1)
    summary = check_receipts(facts, directory, 60)
    assert facts.validation.num_rows == 6
    assert facts.train.num_rows == 54
    assert facts.train.num_samples < 54
    assert facts.validation.num_samples == 6
    assert summary["splits"]["train"]["padding_share"] < 0.2
    assert facts.train.longest_tokens == max(r["tokens"] for r in receipts(directory, "train"))


def test_rows_with_special_tokens_in_their_content_are_counted(run, write_jsonl, tiny, tmp_path, cache):
    asking = {**good(1), "messages": [{"role": "user", "content": "<|im_end|>?"}, good(1)["messages"][1]]}
    instructed = {**good(2), "messages": [{"role": "system", "content": "<|im_start|>"}, *good(2)["messages"]]}
    path = write_jsonl("a.jsonl", [good(0), asking, instructed])
    for options in ({}, {"split_special_tokens": False}):
        facts, directory = run(path, **options)
        assert facts.num_special == 2
        assert json.loads((directory.receipts / "summary.json").read_text())["special_token_rows"] == 2
    assert check_recipe(recipe_of([path]), tiny, recipe_dir=tmp_path, cache=cache).special_token_rows == 2


def test_the_index_contains_the_tokens_of_the_rows(run, tiny, write_jsonl, chat_rows):
    facts, _ = run(write_jsonl("a.jsonl", chat_rows), packing=False)
    index = TokenIndex.open(Path(facts.train.index))
    for number, row in enumerate(chat_rows):
        sample = index.sample(number)
        text, spans = render_with_spans(tiny.template, row["messages"])
        assert sample.tokens.tolist() == tiny.encode(text)
        assert tiny.decode(sample.tokens[sample.supervised].tolist(), False) == "".join(text[a:b] for a, b in spans)
        assert sample.rows == [number]


FAULTS = {
    "broken line": ('{"messages": [', "cut off"),
    "unknown role": (json.dumps({"messages": [{"role": "bot", "content": "x"}]}), "unknown role"),
    "empty answer": (
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}),
        "empty",
    ),
    "too long": (
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x y" * 300}]}),
        "too long",
    ),
    "no supervised token": (json.dumps({"messages": [{"role": "user", "content": "q"}]}), "no supervised token"),
    "misspelled key": ('{"mesages": []}', 'did you mean "messages"'),
    "wrong type": ('{"messages": [{"role": "user", "content": 1}]}', "not a string"),
    "deep nesting": ('{"messages": ' + "[" * 2000 + "]" * 2000 + "}", "nested more than"),
    "not an object": ("[1, 2]", "is a list"),
    "NaN": ('{"messages": NaN}', "NaN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_row_is_an_error_with_file_line_reason_and_remedy(run, tmp_path, write_jsonl, fault):
    raw, message = FAULTS[fault]
    path = write_jsonl("rows.jsonl", [good(0), good(1), raw, good(2)])
    with pytest.raises(InputError) as caught:
        run(path)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert "rows.jsonl:3: " in caught.value.where
    assert message in str(caught.value)
    assert caught.value.remedy
    (reject,) = receipts(RunDir(tmp_path / "run"), "rejects")
    assert (reject["line"], reject["row"]) == (3, 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_row_within_max_rejects_is_recorded_and_the_rest_is_indexed(run, write_jsonl, fault):
    raw, message = FAULTS[fault]
    facts, directory = run(write_jsonl("rows.jsonl", [good(0), good(1), raw, good(2)]), max_rejects=1)
    check_receipts(facts, directory, 4)
    (reject,) = receipts(directory, "rejects")
    assert message in f"{reject['reason']}; {reject['remedy']}"
    assert (reject["source"], reject["line"]) == ("rows.jsonl", 3)
    assert reject["text"] == raw.strip()[:200]
    assert facts.train.num_rows == 3
    assert set(TokenIndex.open(Path(facts.train.index)).sample(0).rows) == {0, 1, 3}


@pytest.mark.parametrize("content", [b"", b'{"text": "\xff"}', b"\x00\x00\n", b"\n\n"])
def test_an_empty_or_binary_file_is_one_rejected_row(run, tmp_path, write_jsonl, content):
    (tmp_path / "bad.jsonl").write_bytes(content)
    path = write_jsonl("rows.jsonl", [good(0), good(1)])
    with pytest.raises(InputError, match=r"bad\.jsonl:1"):
        run(path, tmp_path / "bad.jsonl")
    facts, directory = run(path, tmp_path / "bad.jsonl", max_rejects=1)
    check_receipts(facts, directory, 3)


def test_the_error_lists_the_first_rejects_and_their_number(run, write_jsonl):
    path = write_jsonl("rows.jsonl", [good(0), *["{"] * 9])
    with pytest.raises(InputError) as caught:
        run(path, max_rejects=3)
    assert "9 rows rejected; data.max_rejects allows 3" in str(caught.value)
    assert "and 4 more" in str(caught.value)
    assert "rows.jsonl:6" in str(caught.value)
    assert "rows.jsonl:7" not in str(caught.value)


def test_rejecting_all_rows_is_an_error_for_any_max_rejects(run, write_jsonl):
    with pytest.raises(InputError, match="none of the 2 rows can be used"):
        run(write_jsonl("rows.jsonl", ["{", "{"]), max_rejects=10)


def test_a_cached_index_with_more_rejects_than_allowed_is_an_error(run, write_jsonl):
    path = write_jsonl("rows.jsonl", [good(0), "{", good(1)])
    run(path, max_rejects=1)
    with pytest.raises(InputError, match=r"rows\.jsonl:2"):
        run(path, max_rejects=0)


def test_receipts_record_truncated_masked_dropped_and_duplicate_rows(run, write_jsonl):
    long = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 400}]}
    masked = {
        "messages": [
            *good(1)["messages"][:1],
            {"role": "assistant", "content": "no", "weight": 0},
            *good(2)["messages"],
        ]
    }
    path = write_jsonl("rows.jsonl", [good(0), long, masked, good(0)])
    facts, directory = run(path, too_long="truncate")
    check_receipts(facts, directory, 4)
    rows = receipts(directory, "train")
    assert [row["fate"] for row in rows] == ["kept", "truncated", "masked", "kept"]
    assert (rows[1]["tokens"], rows[1]["lost_tokens"] > 100) == (256, True)
    assert f"{rows[1]['lost_supervised_tokens']} of them supervised" in rows[1]["reason"]
    assert rows[3]["duplicate_of"] == 0
    assert (facts.num_truncated, facts.num_duplicates) == (1, 1)
    facts, directory = run(path, too_long="drop", duplicates="drop")
    check_receipts(facts, directory, 4)
    rows = receipts(directory, "train")
    assert [row["fate"] for row in rows] == ["kept", "dropped", "masked", "duplicate"]
    assert (facts.num_dropped, facts.num_duplicates, facts.train.num_rows) == (1, 1, 2)


def test_equal_rows_are_held_out_together(run, write_jsonl):
    rows = [good(number % 20) for number in range(100)]
    facts, directory = run(write_jsonl("rows.jsonl", rows), validation=0.2)
    check_receipts(facts, directory, 100)
    sides = {name: {json.dumps(rows[r["row"]]) for r in receipts(directory, name)} for name in ("train", "validation")}
    assert not sides["train"] & sides["validation"]
    assert facts.validation.num_rows == 20


def test_the_split_of_a_row_is_stable_when_rows_are_added_and_depends_on_the_seed(run, write_jsonl):
    def held(count, seed):
        _, directory = run(write_jsonl("rows.jsonl", [good(n) for n in range(count)]), validation=0.2, seed=seed)
        return {receipt["row"] for receipt in receipts(directory, "validation")}

    few, more, other = held(100, 7), held(110, 7), held(100, 8)
    assert len(few - more) <= 4
    assert len(few & other) < 15


def test_near_duplicates_are_counted_and_examples_across_the_split_come_first(run, write_jsonl):
    def row(number, more=""):
        answer = " ".join(str(number * word * word % 9973) for word in range(2, 40)) + more
        return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": answer}]}

    train = write_jsonl("train.jsonl", [row(1), row(2), row(3), row(1, " well"), row(2)])
    held_out = write_jsonl("held.jsonl", [row(9), row(3, " yes")])
    facts, directory = run(train, validation=[str(held_out)])
    summary = check_receipts(facts, directory, 7)
    near = summary["near_duplicates"]
    assert (near["train"], near["across"]) == (1, 1)
    assert [(example["place"], example["like"]) for example in near["examples"]] == [
        ("held.jsonl:2", "train.jsonl:3"),
        ("train.jsonl:4", "train.jsonl:1"),
    ]
    assert facts.num_duplicates == 1


def test_equal_rows_alone_leave_nothing_for_validation(run, write_jsonl):
    with pytest.raises(InputError, match="no row is left for validation"):
        run(write_jsonl("rows.jsonl", [good(0), good(0)]), validation=0.5)


def test_validation_rows_equal_to_training_rows_are_rejected(run, write_jsonl):
    train = write_jsonl("train.jsonl", [good(n) for n in range(5)])
    held_out = write_jsonl("held.jsonl", [good(7), good(3), good(8)])
    with pytest.raises(InputError) as caught:
        run(train, validation=[str(held_out)])
    assert "held.jsonl:2: equal to the training row at train.jsonl:4" in str(caught.value)
    facts, directory = run(train, validation=[str(held_out)], max_rejects=1)
    check_receipts(facts, directory, 8)
    assert [(r["row"], r["fate"]) for r in receipts(directory, "validation")] == [
        (5, "kept"),
        (6, "rejected"),
        (7, "kept"),
    ]
    assert TokenIndex.open(Path(facts.validation.index)).document(1).rows == [7]


def test_a_split_text_is_several_documents_of_one_row(run, tiny, tmp_path):
    (tmp_path / "book.txt").write_text("once upon a time " * 100)
    facts, directory = run(tmp_path / "book.txt", task="text", too_long="split", max_seq_len=64, packing=False)
    check_receipts(facts, directory, 1)
    index = TokenIndex.open(Path(facts.train.index))
    assert {row for n in range(index.num_documents) for row in index.document(n).rows} == {0}
    tokens = np.concatenate([index.document(n).tokens for n in range(index.num_documents)])
    assert tokens.tolist() == [*tiny.encode("once upon a time " * 100), tiny.eos_token_id]


def test_several_files_and_shards_give_the_same_index_as_one_file(run, write_jsonl, chat_rows, monkeypatch):
    whole, _ = run(write_jsonl("all.jsonl", chat_rows), validation=0.1)
    monkeypatch.setattr(lines_module, "SHARD_BYTES", 500)
    parts = [write_jsonl(f"part-{n}.jsonl", chat_rows[n * 20 : n * 20 + 20]) for n in range(3)]
    cut, directory = run(*parts, validation=0.1)
    check_receipts(cut, directory, 60)
    assert next(r["line"] for r in receipts(directory, "train") if r["source"] == "part-2.jsonl") in range(1, 10)
    for side in ("train", "validation"):
        one, other = (TokenIndex.open(Path(getattr(facts, side).index)) for facts in (whole, cut))
        assert one.num_samples == other.num_samples
        for number in range(one.num_samples):
            assert one.sample(number).tokens.tolist() == other.sample(number).tokens.tolist()
            assert one.sample(number).rows == other.sample(number).rows


def test_a_second_run_uses_the_cache(run, write_jsonl, chat_rows, cache, monkeypatch):
    path = write_jsonl("a.jsonl", chat_rows)
    first, directory = run(path, validation=0.1)
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file() and "locks" not in p.parts}
    monkeypatch.setattr("tunesmith.data.index.build.prepare_sources", None)  # nothing may be tokenized again
    receipts_before = (directory.receipts / "train.jsonl").read_bytes()
    (directory.receipts / "train.jsonl").unlink()
    second, directory = run(path, validation=0.1)
    assert second == first
    assert (directory.receipts / "train.jsonl").read_bytes() == receipts_before
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_every_option_that_affects_the_index_changes_the_fingerprint(run, write_jsonl, chat_rows):
    path = write_jsonl("a.jsonl", chat_rows)
    fingerprints = {run(path)[0].fingerprint}
    for change in (
        {"packing": False},
        {"max_seq_len": 200},
        {"too_long": "drop"},
        {"duplicates": "drop"},
        {"validation": 0.1},
    ):
        fingerprints.add(run(path, **change)[0].fingerprint)
    fingerprints.add(run(path, validation=0.1, seed=8)[0].fingerprint)
    path.write_text(path.read_text().replace("case 3,", "case 33,"))
    fingerprints.add(run(path)[0].fingerprint)
    assert len(fingerprints) == 8


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("where", ["index/*/train/tokens.u32", "index/*/receipts/train.jsonl", "shards/*/rows.npy"])
def test_a_damaged_cache_entry_is_rebuilt(run, write_jsonl, chat_rows, cache, where, damage):
    path = write_jsonl("a.jsonl", chat_rows)
    facts, _ = run(path)
    good_bytes = {p.relative_to(cache): p.read_bytes() for p in cache.glob(where)}
    ((name, content),) = good_bytes.items()
    if where.startswith("shards"):  # shards are read only if the index is missing
        import shutil

        shutil.rmtree(cache / "index")
    if damage == "remove":
        (cache / name).unlink()
    else:
        half = len(content) // 2
        rest = bytes([content[half] ^ 1]) + content[half + 1 :] if damage == "flip" else b""
        (cache / name).write_bytes(content[:half] + rest)
    again, _ = run(path)
    assert again == facts
    assert (cache / name).read_bytes() == content


KILLED = """
import sys
from pathlib import Path
from tunesmith.configs.recipe import Recipe
from tunesmith.data.readers import lines
from tunesmith.data.index.prepare import prepare
from tunesmith.data.tokenization.tokenizer import Tokenizer
lines.SHARD_BYTES = 2000
data = {"train": [sys.argv[1]], "max_seq_len": 256}
recipe = Recipe(name="t", model={"base": "m"}, method={"kind": "full"}, data=data)
prepare(recipe, Tokenizer.load(Path(sys.argv[2])), recipe_dir=Path("/"), cache=Path(sys.argv[3]), workers=1)
"""


def test_after_a_kill_finished_shards_are_not_prepared_again(write_jsonl, tiny_llama, cache, chat_rows):
    path = write_jsonl("a.jsonl", chat_rows)
    command = [sys.executable, "-c", KILLED, str(path), str(tiny_llama), str(cache)]
    killed = subprocess.run(command, env={**os.environ, "TUNESMITH_FAULT": "commit.files:4=kill"}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = {p: p.stat().st_mtime_ns for p in cache.glob("shards/*/manifest.json")}
    assert len(done) == 3
    assert len(list(cache.glob("shards/*.tmp.*"))) == 1
    assert not list(cache.glob("index/*/manifest.json"))
    subprocess.run(command, check=True)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert not list(cache.glob("shards/*.tmp.*"))
    assert len(list(cache.glob("shards/*/manifest.json"))) > 4


def test_evaluation_files_are_neither_packed_nor_split(tmp_path, tiny, cache, write_jsonl, chat_rows):
    path = write_jsonl("a.jsonl", chat_rows)
    index = TokenIndex.open(prepare_file(path, EncodingSpec("chat", 256), tiny, cache=cache))
    assert (index.num_samples, index.num_documents) == (60, 60)
    assert [index.document(n).rows for n in (0, 59)] == [[0], [59]]
    with pytest.raises(InputError, match="too long"):
        prepare_file([path], EncodingSpec("chat", 32), tiny, cache=cache)


def test_progress_reaches_its_total(tiny, cache, tmp_path, write_jsonl, chat_rows, monkeypatch):
    monkeypatch.setattr(lines_module, "SHARD_BYTES", 1000)
    path, calls = write_jsonl("a.jsonl", chat_rows), []
    prepare(recipe_of([path]), tiny, recipe_dir=tmp_path, cache=cache, progress=lambda *call: calls.append(call))
    for phase in ("reading", "tokenising"):
        steps = [(done, total) for name, done, total in calls if name == phase]
        assert steps[-1] == (path.stat().st_size,) * 2
        assert steps == sorted(steps)


def test_an_unwritable_cache_is_an_error(tiny, tmp_path, write_jsonl, chat_rows):
    path = write_jsonl("a.jsonl", chat_rows)
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="cache cannot be written") as caught:
        prepare(recipe_of([path]), tiny, recipe_dir=tmp_path, cache=tmp_path / "file")
    assert "TUNESMITH_CACHE" in caught.value.remedy


def test_the_cache_directory_is_set_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("TUNESMITH_CACHE")
    assert cache_root() == Path.home() / ".cache" / "tunesmith"


def test_preparation_and_check_never_import_torch(write_jsonl, tiny_llama, cache, chat_rows):
    code = KILLED + "import tunesmith.data.show, tunesmith.data.check\n"
    code += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, str(write_jsonl("a.jsonl", chat_rows)), str(tiny_llama), str(cache)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"
