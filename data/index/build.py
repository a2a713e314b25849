"""Build a committed directory of token indexes and receipts: cut files into shards, prepare the shards in parallel, and
assemble them. Shards and indexes in the cache are reused."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tunesmith.configs.plan import DataFacts, DataSetFacts, SplitFacts
from tunesmith.data.cache import build_once, cache_root
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.index import shard as shards
from tunesmith.data.index.assemble import Assembly, PreparedShard, Shape
from tunesmith.data.index.first_rows import require_agreement_on
from tunesmith.data.index.summary import SplitSummary, Summary
from tunesmith.data.index.workers import prepare_shards
from tunesmith.data.readers.shard import Shard
from tunesmith.data.readers.sources import cut, resolve
from tunesmith.data.readers.storage import address_of
from tunesmith.data.rows.receipts import Reject
from tunesmith.errors import InputError
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.commit import MANIFEST, seal
from tunesmith.rundir.fence import require_present
from tunesmith.rundir.paths import RunDir

Progress = Callable[[str, int, int], None]
PrepareShards = Callable[[Sequence[Shard], RowEncoder, Path, int, Callable[[Shard], None]], list[Path]]
"""Function that prepares shards: local processes (data/index/workers.py), or tasks of a cluster.

Takes shards, encoder, cache, maximum number of processes and a callback for each finished shard; returns the
directories in order."""
SHOWN_REJECTS = 5
PACKING = 2  # increase it when the same documents would be packed differently


@dataclass(frozen=True)
class Source:
    """A shard with its origin. name: its file, as named in receipts and errors. dataset: name of its data set; empty
    for files without one."""

    shard: Shard
    name: str
    validation: bool
    dataset: str = ""


@dataclass(frozen=True)
class Files:
    """Files to read. names: paths, patterns or URLs. csv_delimiter: None to detect it. dataset: as in Source."""

    names: Sequence[str]
    validation: bool = False
    dataset: str = ""
    csv_delimiter: str | None = None


OwnEncoders = Mapping[tuple[str, bool], RowEncoder]
"""Encoders of data sets, by name and whether they are validation files."""


def encoder_of(source: Source, encoder: RowEncoder, encoders: OwnEncoders | None) -> RowEncoder:
    """Return the encoder of a file's rows: that of its data set, or `encoder`."""
    return (encoders or {}).get((source.dataset, source.validation), encoder)


def read_sources(
    train: Sequence[str],
    validation: float | Sequence[str],
    recipe_dir: Path,
    progress: Progress | None = None,
    csv_delimiter: str | None = None,
) -> list[Source]:
    """Find the files, cut them into shards and hash every byte. Training files come first. csv_delimiter: None to
    detect it. Raises InputError."""
    files = [Files(train, csv_delimiter=csv_delimiter)]
    if not isinstance(validation, float | int):
        files.append(Files(validation, validation=True, csv_delimiter=csv_delimiter))
    return read_files(files, recipe_dir, progress)


def read_files(files: Sequence[Files], recipe_dir: Path, progress: Progress | None = None) -> list[Source]:
    """Find files, cut them into shards and hash every byte, in the given order. Raises InputError, also if two data
    sets contain the same file."""
    resolved = [(path, each) for each in files for path in resolve(each.names, recipe_dir)]
    _require_one_dataset(resolved)
    total, done, sources = sum(path.stat().st_size for path, _ in resolved), 0, []
    for path, each in resolved:
        name = str(path.relative_to(recipe_dir.resolve()) if path.is_relative_to(recipe_dir.resolve()) else path)
        name = address_of(path) or name
        sources += [Source(shard, name, each.validation, each.dataset) for shard in cut(path, each.csv_delimiter)]
        done += path.stat().st_size
        if progress:
            progress("reading", done, total)
    return sources


def _require_one_dataset(resolved: Sequence[tuple[Path, Files]]) -> None:
    """Raise InputError if two data sets of the training rows, or of the validation rows, contain the same file."""
    owners: dict[tuple[Path, bool], str] = {}
    for path, files in resolved:
        first = owners.setdefault((path, files.validation), files.dataset)
        if first != files.dataset:
            raise InputError(
                f"the data sets {first} and {files.dataset} contain the same file",
                where=str(path),
                remedy="remove it from one of them; a larger weight repeats rows more often",
            )


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
    encoders: OwnEncoders | None = None,
) -> Path:
    """Return the committed directory with an index per split and the receipts: `train/`, `validation/`, `receipts/`.

    encoders: of the data sets that have another one than `encoder`. Raises InputError if more than max_rejects rows are
    rejected, or no row is left.
    """
    cache = cache or cache_root()
    fingerprint = fingerprint_of(sources, encoder, shape, encoders)

    def write(directory: Path) -> None:
        prepared = prepare_sources(sources, encoder, cache, progress, workers, shards_by, encoders)
        assembly = Assembly(prepared, shape)
        if assembly.num_rejected > max_rejects:
            if run is not None:
                require_present(run)
                run.receipts.mkdir(parents=True, exist_ok=True)
                _write_rejects(assembly, run.rejects)
            raise rejects_error(assembly.rejects(SHOWN_REJECTS), assembly.num_rejected, max_rejects)
        assembly.check_not_empty()
        assembly.write(directory, fingerprint)

    index = build_once(cache / "index" / fingerprint, write)
    rejected = read_summary(index)["fates"]["rejected"]
    if rejected > max_rejects:  # cached from a run that allowed more
        rejects = _read_rejects(index / "receipts" / "rejects.jsonl", SHOWN_REJECTS)
        if run is not None:
            copy_receipts(index / "receipts", run.receipts)
        raise rejects_error(rejects, rejected, max_rejects)
    return index


def data_facts(index: Path) -> DataFacts:
    """Return the plan's facts about a prepared directory."""
    summary = read_summary(index)
    facts = {name: split_facts(index / name, split) for name, split in summary["splits"].items() if split["samples"]}
    return DataFacts(
        fingerprint=index.name,
        train=facts["train"],
        validation=facts.get("validation"),
        num_rejected=summary["fates"]["rejected"],
        num_dropped=summary["fates"]["dropped"],
        num_truncated=summary["fates"]["truncated"],
        num_duplicates=sum(split["duplicates"] for split in summary["splits"].values()),
        num_unselected=summary["fates"].get("unselected", 0),
        num_special=summary.get("special_token_rows", 0),
        omitted=summary.get("omitted", {}),
        datasets=[DataSetFacts.model_validate(each) for each in summary.get("datasets", [])],
    )


def read_summary(index: Path) -> Summary:
    """Read the summary of a prepared directory."""
    return json.loads((index / "receipts" / "summary.json").read_text(encoding="utf-8"))


def rejects_error(rejects: Sequence[Reject], total: int, allowed: int) -> InputError:
    """Return the error for too many rejected rows, with their number and the first few."""
    shown = [f"{reject.source}:{reject.line}: {reject.reason}" for reject in rejects]
    more = f"\n              ... and {total - len(shown):,} more" if total > len(shown) else ""
    return InputError(
        f"{total:,} row{'s' if total > 1 else ''} rejected; data.max_rejects allows {allowed:,}",
        where="\n              ".join(shown) + more,
        remedy=f"{rejects[0].remedy}. To train without these rows, set data.max_rejects: {total}",
    )


def prepare_sources(
    sources: Sequence[Source],
    encoder: RowEncoder,
    cache: Path,
    progress: Progress | None = None,
    workers: int | None = None,
    shards_by: PrepareShards = prepare_shards,
    encoders: OwnEncoders | None = None,
) -> list[PreparedShard]:
    """Prepare every shard. Shards with equal content are prepared once. encoders: as in `build`. Raises InputError if
    transformers tokenizes the first rows differently."""
    names, by_encoder = [], dict[RowEncoder, dict[str, Shard]]()
    for source in sources:
        own = encoder_of(source, encoder, encoders)
        names.append(shards.shard_id(source.shard, own))
        by_encoder.setdefault(own, {})[names[-1]] = source.shard
    for own in by_encoder:
        own_sources = (each for each in sources if encoder_of(each, encoder, encoders) is own)
        require_agreement_on(((source.name, source.shard) for source in own_sources), own)
    total = sum(shard.stop - shard.start for unique in by_encoder.values() for shard in unique.values())
    done = 0

    def report(shard: Shard) -> None:
        nonlocal done
        done += shard.stop - shard.start
        if progress:
            progress("tokenising", done, total)

    workers, directories = workers or len(os.sched_getaffinity(0)), dict[str, Path]()
    for own, unique in by_encoder.items():
        prepared = shards_by(list(unique.values()), own, cache, workers, report)
        directories |= dict(zip(unique, prepared, strict=True))
    return [
        PreparedShard(directories[name], source.name, source.shard.first_line, source.validation, source.dataset)
        for name, source in zip(names, sources, strict=True)
    ]


def fingerprint_of(
    sources: Sequence[Source], encoder: RowEncoder, shape: Shape, encoders: OwnEncoders | None = None
) -> str:
    """Return the SHA-256 (hex) over everything that the index and its receipts depend on. encoders: as in `build`."""
    rows = [
        [
            shards.shard_id(source.shard, encoder_of(source, encoder, encoders)),
            source.name,
            source.shard.first_line,
            source.validation,
            *([source.dataset] if source.dataset else []),
        ]
        for source in sources
    ]
    return sha256(json.dumps([shards.SCHEMA, rows, _shape_key(shape)]).encode("utf-8")).hexdigest()


def _shape_key(shape: Shape) -> dict[str, object]:
    """Return the hashed part of the shape. Newer options that are off are left out, so that older hashes stay valid."""
    newer = ("paired", "mixed", "max_rows")
    key: dict[str, object] = {name: value for name, value in vars(shape).items() if name not in newer or value}
    return key | ({"packing": PACKING} if shape.packing else {})


def split_facts(directory: Path, split: SplitSummary) -> SplitFacts:
    """Return the plan's facts about a split. directory: its index; split: its part of the summary."""
    return SplitFacts(
        index=str(directory.resolve()),
        num_rows=split["trained_rows"],
        num_samples=split["samples"],
        num_tokens=split["tokens"],
        supervised_tokens=split["supervised_tokens"],
        longest_tokens=split["longest_document"],
    )


def copy_receipts(source: Path, target: Path) -> None:
    """Copy the receipts of a prepared directory to a run directory, with a manifest of their hashes."""
    target.mkdir(parents=True, exist_ok=True)
    (target / MANIFEST).unlink(missing_ok=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    seal(target)


def _write_rejects(assembly: Assembly, path: Path) -> None:
    rejects = assembly.rejects(assembly.num_rejected)
    write_text(path, "".join(json.dumps(reject.as_json(), ensure_ascii=False) + "\n" for reject in rejects))


def _read_rejects(path: Path, limit: int) -> list[Reject]:
    with open(path, encoding="utf-8") as file:
        return [Reject(**json.loads(line)) for line, _ in zip(file, range(limit), strict=False)]
