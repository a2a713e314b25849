"""From the recipe's files to token indexes: in shards, in parallel, and only what was not prepared before."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.configs.plan import DataFacts, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.data import shard as shards
from tunesmith.data.assemble import Assembly, Part, Shape
from tunesmith.data.cache import build_once, cache_root
from tunesmith.data.encoders import Options, RowEncoder, make_encoder, options_of
from tunesmith.data.formats import guess_task
from tunesmith.data.index import TokenIndex
from tunesmith.data.labels import check_weights, find_labels
from tunesmith.data.sources import Shard, cut, read, resolve
from tunesmith.data.storage import address_of, is_url
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.data.workers import prepare_shards
from tunesmith.errors import InputError
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.paths import RunDir

Progress = Callable[[str, int, int], None]
PrepareShards = Callable[[Sequence[Shard], RowEncoder, Path, int, Callable[[Shard], None]], list[Path]]
"""Who prepares the shards of a data set: processes here (data/workers.py), or a cluster's tasks.

Takes shards, encoder, cache, processes at most, and who is told of each that is ready; the directories in order."""
SHOWN_REJECTS = 5


@dataclass(frozen=True)
class Source:
    """A shard in its place: `name` as receipts and errors show the file."""

    shard: Shard
    name: str
    validation: bool


def prepare(
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    recipe_dir: Path,
    cache: Path | None = None,
    run: RunDir | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    shards_by: PrepareShards = prepare_shards,
) -> DataFacts:
    """Prepare the recipe's rows, or find them prepared, and write the run's receipts.

    progress: called with ("reading" | "tokenising", bytes done, bytes in all). workers: processes at most; None: one a
    core. shards_by: who prepares the shards. Raises InputError naming files, lines, reasons and remedies where more
    rows are refused than data.max_rejects allows, or nothing is left to train or to hold out.
    """
    data = recipe.data
    refuse_raw_copies(recipe, named_files(recipe))
    sources = read_sources(data.train, data.validation, recipe_dir, progress)
    labels = labels_of(recipe, sources)
    encoder = make_encoder(tokenizer, recipe.task, data.max_seq_len, data.too_long, options_of(recipe, labels))
    index = build(
        sources,
        encoder,
        shape_of(recipe),
        data.max_rejects,
        cache=cache,
        run=run,
        progress=progress,
        workers=workers,
        shards_by=shards_by,
    )
    if run is not None:
        _copy_receipts(index / "receipts", run.receipts)
    facts = data_facts(index)
    if labels is not None:
        facts = with_labels(facts, recipe, labels)
    if recipe.evaluation.retain is None:
        return facts
    return facts.model_copy(update={"retain": _prepare_retained(recipe, tokenizer, recipe_dir, cache, workers)})


def _prepare_retained(
    recipe: Recipe, tokenizer: Tokenizer, recipe_dir: Path, cache: Path | None, workers: int | None
) -> SplitFacts:
    """The rows of evaluation.retain, of the kind that the first of them is; what is too long is cut."""
    files = resolve([recipe.evaluation.retain or ""], recipe_dir)
    task = first_task(files)
    if task is None:
        raise InputError(
            "no row tells what kind of data this is",
            where=f"key evaluation.retain: {', '.join(map(str, files))}",
            remedy='rows need "messages", "prompt" and "completion", or "text"',
        )
    index = prepare_file(
        files,
        task,
        tokenizer,
        max_seq_len=recipe.data.max_seq_len,
        too_long="split" if task == "text" else "truncate",
        max_rejects=recipe.data.max_rejects,
        cache=cache,
        workers=workers,
        options=options_of(recipe),
    )
    return _split_facts(index, read_summary(index.parent)["splits"]["train"])


def named_files(recipe: Recipe) -> list[str]:
    """All that the recipe names as rows: to train on, held out, and general ones."""
    held_out, general = recipe.data.validation, recipe.evaluation.retain
    return [
        *recipe.data.train,
        *(held_out if isinstance(held_out, list) else []),
        *([general] if general is not None else []),
    ]


def refuse_raw_copies(recipe: Recipe, names: Sequence[str]) -> None:
    """InputError where rows are to be de-identified and a URL among `names` would be cached as it is."""
    if recipe.data.deidentify is not None and (urls := [name for name in names if is_url(name)]):
        raise InputError(
            "rows behind a URL would lie in the cache as they are, and data.deidentify is set",
            where=urls[0],
            remedy="fetch the file yourself to where it is safe and name it by its path, or leave data.deidentify out",
        )


def first_task(files: Sequence[Path]) -> str | None:
    """The task that the first readable row speaks for; None where none does."""
    for path in files:
        for shard in cut(path):
            for line in read(shard):
                if (task := guess_task(line.value)) is not None:
                    return task
    return None


def prepare_file(
    paths: Path | Sequence[Path],
    task: str,
    tokenizer: Tokenizer,
    *,
    max_seq_len: int,
    too_long: str = "error",
    max_rejects: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    options: Options | None = None,
) -> Path:
    """Prepare files for evaluation: every row by itself, nothing packed or held out. The directory of a TokenIndex.

    Rows are numbered from 0 over the files in order. options: as `options_of` gives them.
    Raises InputError as `prepare` does.
    """
    names = [str(path) for path in ([paths] if isinstance(paths, Path) else paths)]
    sources = read_sources(names, 0.0, Path.cwd(), progress)
    encoder = make_encoder(tokenizer, task, max_seq_len, too_long, options)
    shape = Shape(max_seq_len, False, "keep", None, 0, paired=task == "preference")
    return build(sources, encoder, shape, max_rejects, cache=cache, progress=progress, workers=workers) / "train"


def shape_of(recipe: Recipe) -> Shape:
    data = recipe.data
    share = data.validation if isinstance(data.validation, float) and data.validation > 0 else None
    paired = recipe.task == "preference"
    return Shape(data.max_seq_len, recipe.packs, data.duplicates, share, recipe.seed, paired)


def labels_of(recipe: Recipe, sources: Sequence[Source]) -> list[str] | None:
    """The labels of a classification, from the recipe or the training files; None for other tasks. Raises
    InputError."""
    if recipe.task != "classification":
        return None
    train = [source for source in sources if not source.validation]
    where = ", ".join(dict.fromkeys(source.name for source in train))
    rows = (line.value for source in train for line in read(source.shard))
    withheld = recipe.data.deidentify is not None
    labels = find_labels(rows, recipe.classification, where, withheld)
    check_weights(recipe.classification, labels, withheld)
    return labels


def with_labels(facts: DataFacts, recipe: Recipe, labels: list[str]) -> DataFacts:
    """The facts with the labels and how many training rows each has, as the index holds them."""
    train = TokenIndex.open(Path(facts.train.index))
    targets = np.concatenate([train.targets(number) for number in range(train.num_documents)]).astype(np.int64)
    if recipe.classification.kind == "multi_label":
        counts = targets.reshape(-1, len(labels)).sum(0)
    else:
        counts = np.bincount(targets, minlength=len(labels))
    return facts.model_copy(update={"labels": labels, "label_counts": counts.tolist()})


def read_sources(
    train: Sequence[str], validation: float | Sequence[str], recipe_dir: Path, progress: Progress | None = None
) -> list[Source]:
    """Find the files and cut them into shards, hashing every byte. Training files first. Raises InputError."""
    files = [(path, False) for path in resolve(train, recipe_dir)]
    if not isinstance(validation, float | int):
        files += [(path, True) for path in resolve(validation, recipe_dir)]
    total, done, sources = sum(path.stat().st_size for path, _ in files), 0, []
    for path, held_out in files:
        name = str(path.relative_to(recipe_dir.resolve()) if path.is_relative_to(recipe_dir.resolve()) else path)
        name = address_of(path) or name
        sources += [Source(shard, name, held_out) for shard in cut(path)]
        done += path.stat().st_size
        if progress:
            progress("reading", done, total)
    return sources


def build(
    sources: Sequence[Source],
    encoder: RowEncoder,
    shape: Shape,
    max_rejects: int,
    *,
    cache: Path | None = None,
    run: RunDir | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    shards_by: PrepareShards = prepare_shards,
) -> Path:
    """The committed directory with an index a split and the receipts: `train/`, `validation/`, `receipts/`."""
    cache = cache or cache_root()
    fingerprint = _fingerprint(sources, encoder, shape)

    def write(directory: Path) -> None:
        parts = prepare_parts(sources, encoder, cache, progress, workers, shards_by)
        assembly = Assembly(parts, shape)
        if assembly.num_rejected > max_rejects:
            if run is not None:
                _write_rejects(assembly, run.rejects)
            raise refused(assembly.rejects(SHOWN_REJECTS), assembly.num_rejected, max_rejects)
        assembly.check_something_is_left()
        assembly.write(directory, fingerprint)

    index = build_once(cache / "index" / fingerprint, write)
    rejected = read_summary(index)["fates"]["rejected"]
    if rejected > max_rejects:  # prepared before, when more were allowed
        rejects = _read_lines(index / "receipts" / "rejects.jsonl", SHOWN_REJECTS)
        if run is not None:
            _copy_receipts(index / "receipts", run.receipts)
        raise refused(rejects, rejected, max_rejects)
    return index


def data_facts(index: Path) -> DataFacts:
    """What the plan needs to know of a prepared directory."""
    summary = read_summary(index)
    facts = {name: _split_facts(index / name, split) for name, split in summary["splits"].items() if split["samples"]}
    return DataFacts(
        fingerprint=index.name,
        train=facts["train"],
        validation=facts.get("validation"),
        num_rejected=summary["fates"]["rejected"],
        num_dropped=summary["fates"]["dropped"],
        num_truncated=summary["fates"]["truncated"],
        num_duplicates=sum(split["duplicates"] for split in summary["splits"].values()),
    )


def read_summary(index: Path) -> dict[str, Any]:
    """The counts of a prepared directory (receipts.py says which)."""
    return json.loads((index / "receipts" / "summary.json").read_text(encoding="utf-8"))


def refused(rejects: Sequence[dict[str, Any]], total: int, allowed: int) -> InputError:
    """The error that names refused rows: the first few, and how many there are."""
    shown = [f"{reject['source']}:{reject['line']}: {reject['reason']}" for reject in rejects]
    more = f"\n              ... and {total - len(shown):,} more" if total > len(shown) else ""
    return InputError(
        f"{total:,} row{'s' if total > 1 else ''} cannot be used, data.max_rejects allows {allowed:,}",
        where="\n              ".join(shown) + more,
        remedy=f"{rejects[0]['remedy']}. To leave such rows out instead: data.max_rejects: {total}",
    )


def prepare_parts(
    sources: Sequence[Source],
    encoder: RowEncoder,
    cache: Path,
    progress: Progress | None = None,
    workers: int | None = None,
    shards_by: PrepareShards = prepare_shards,
) -> list[Part]:
    """Every shard prepared. The same content twice is prepared once."""
    names = [shards.shard_id(source.shard, encoder) for source in sources]
    once = {name: source.shard for name, source in zip(names, sources, strict=True)}
    total, done = sum(shard.stop - shard.start for shard in once.values()), 0

    def say(shard: Shard) -> None:
        nonlocal done
        done += shard.stop - shard.start
        if progress:
            progress("tokenising", done, total)

    workers = workers or len(os.sched_getaffinity(0))
    directories = dict(zip(once, shards_by(list(once.values()), encoder, cache, workers, say), strict=True))
    return [
        Part(directories[name], source.name, source.shard.first_line, source.validation)
        for name, source in zip(names, sources, strict=True)
    ]


def _fingerprint(sources: Sequence[Source], encoder: RowEncoder, shape: Shape) -> str:
    """SHA-256 (hex) over all that the index and its receipts depend on."""
    rows = [
        [shards.shard_id(source.shard, encoder), source.name, source.shard.first_line, source.validation]
        for source in sources
    ]
    return sha256(json.dumps([shards.SCHEMA, rows, _shaping(shape)]).encode("utf-8")).hexdigest()


def _shaping(shape: Shape) -> dict[str, Any]:
    """What of the shape is hashed: what is off leaves the hash as it was before it was known."""
    return {name: value for name, value in vars(shape).items() if name != "paired" or value}


def _split_facts(directory: Path, split: dict[str, Any]) -> SplitFacts:
    return SplitFacts(
        index=str(directory.resolve()),
        num_rows=split["trained_rows"],
        num_samples=split["samples"],
        num_tokens=split["tokens"],
        supervised_tokens=split["supervised_tokens"],
        longest_tokens=split["longest_document"],
    )


def _copy_receipts(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def _write_rejects(assembly: Assembly, path: Path) -> None:
    rejects = assembly.rejects(assembly.num_rejected)
    write_text(path, "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects))


def _read_lines(path: Path, limit: int) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(limit), strict=False)]
