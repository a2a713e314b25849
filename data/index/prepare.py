"""Prepare the data of a recipe with data/index/build.py: training, validation and retain rows, and labels."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.configs.plan import DataFacts, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.tasks import TASKS
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.assemble import Shape
from tunesmith.data.index.build import (
    Files,
    OwnEncoders,
    PrepareShards,
    Progress,
    Source,
    build,
    copy_receipts,
    data_facts,
    fingerprint_of,
    read_files,
    read_sources,
    read_summary,
    split_facts,
)
from tunesmith.data.index.mixing import with_shares
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.index.workers import prepare_shards
from tunesmith.data.readers.compression import is_compressed
from tunesmith.data.readers.sources import cut, read, resolve
from tunesmith.data.readers.storage import is_url
from tunesmith.data.rows.formats import guess_task
from tunesmith.data.rows.labels import check_weights, find_labels
from tunesmith.data.rows.shapes.columns import renamed, require_columns
from tunesmith.data.tokenization.agreement import missing_comparison
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.rundir.fence import require_present
from tunesmith.rundir.paths import RunDir

FIRST_ROWS = 1000
"""Rows that are searched for the columns of `data.columns`, and for keys without a meaning."""


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
    """Prepare the recipe's rows, unless they are in the cache, and write the run's receipts.

    progress: called with ("reading" | "tokenising", bytes done, bytes in total). workers: maximum number of processes;
    None: one per core. shards_by: the function that prepares the shards. Raises InputError with files, lines, reasons
    and remedies if more rows are rejected than data.max_rejects allows, or if no row is left for training or
    validation.
    """
    sources = recipe_sources(recipe, recipe_dir, progress)
    encoder, encoders = recipe_encoders(recipe, tokenizer, sources)
    index = build(
        sources,
        encoder,
        shape_of(recipe),
        recipe.data.max_rejects,
        cache=cache,
        run=run,
        progress=progress,
        workers=workers,
        shards_by=shards_by,
        encoders=encoders,
    )
    if run is not None:
        require_present(run)
        copy_receipts(index / "receipts", run.receipts)
    rendered_on = tokenizer.template.today if tokenizer.template else None
    update = {"rendered_on": rendered_on, "tokenizer_not_compared": missing_comparison(tokenizer)}
    facts = with_shares(data_facts(index), recipe).model_copy(update=update)
    if encoder.spec.labels is not None:
        facts = with_labels(facts, recipe, list(encoder.spec.labels))
    if recipe.evaluation.retain is None:
        return facts
    return facts.model_copy(update={"retain": _prepare_retained(recipe, tokenizer, recipe_dir, cache, workers)})


def recipe_sources(
    recipe: Recipe, recipe_dir: Path, progress: Progress | None = None, *, training_only: bool = False
) -> list[Source]:
    """Find and cut the files of training and validation rows. Raises InputError."""
    refuse_raw_copies(recipe, recipe.data.training_paths if training_only else named_files(recipe), recipe_dir)
    return read_files(_files(recipe, training_only), recipe_dir, progress)


def _files(recipe: Recipe, training_only: bool = False) -> list[Files]:
    data = recipe.data
    train = [
        Files(each.path, False, each.label, each.csv_delimiter or data.csv_delimiter) for each in data.training_sets
    ]
    files = train or [Files(data.training_paths, csv_delimiter=data.csv_delimiter)]
    if training_only or not isinstance(data.validation, list):
        return files
    if not data.validation_sets:
        return [*files, Files(data.validation_paths, True, "", data.csv_delimiter)]
    delimiters = {each.dataset: each.csv_delimiter for each in train}
    for each in data.validation_sets:
        delimiter = each.csv_delimiter or delimiters.get(each.label) or data.csv_delimiter
        files.append(Files(each.path, True, each.label, delimiter))
    return files


def recipe_encoders(recipe: Recipe, tokenizer: Tokenizer, sources: Sequence[Source]) -> tuple[RowEncoder, OwnEncoders]:
    """Return the encoder of the recipe's rows, and those of data sets that have columns or template variables of their
    own. Labels are collected from the training files. Raises InputError."""
    own, variables, common = _own(recipe, "columns"), _own(recipe, "chat_template_kwargs"), recipe.data.columns
    for dataset in dict.fromkeys(source.dataset for source in sources if not source.validation):
        train = [source for source in sources if not source.validation and source.dataset == dataset]
        first = islice((line.value for source in train for line in read(source.shard)), FIRST_ROWS)
        key = f"data.train, data set {dataset}, columns" if (dataset, False) in own else "data.columns"
        require_columns(recipe, first, _names(train), own.get((dataset, False), common), key)
    spec = EncodingSpec.of(recipe, read_labels(recipe, sources))
    encoders = {}
    for key in own | variables:
        its_tokenizer = _with_variables(tokenizer, key[0], variables.get(key, {}))
        encoders[key] = make_encoder(its_tokenizer, replace(spec, columns=own.get(key, common)))
    return make_encoder(tokenizer, spec), encoders


def _with_variables(tokenizer: Tokenizer, dataset: str, variables: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer with the template variables of a data set. Raises InputError if the template does not read
    one."""
    try:
        return tokenizer.with_template_kwargs(variables)
    except InputError as error:
        where = f"key chat_template_kwargs of the data set {dataset}"
        raise InputError(error.what, where=where, remedy=error.remedy) from error


def _own(recipe: Recipe, option: str) -> dict[tuple[str, bool], Any]:
    """Return the values of an option for the data sets that set it, with keys as in OwnEncoders."""
    values = {each.label: getattr(each, option) for each in recipe.data.training_sets}
    own = {(name, False): value for name, value in values.items()}
    for each in recipe.data.validation_sets:
        own[each.label, True] = getattr(each, option) or values.get(each.label)
    return {key: value for key, value in own.items() if value}


def earlier_fingerprint(recipe: Recipe, tokenizer: Tokenizer, recipe_dir: Path) -> str:
    """Return the fingerprint under which version 0.2 prepared these rows with this recipe and tokenizer; the tokens may
    differ. Raises InputError if a file is missing."""
    sources = read_files(_files(recipe), recipe_dir)
    spec = replace(EncodingSpec.of(recipe, read_labels(recipe, sources)), revision=1)
    return fingerprint_of(sources, make_encoder(tokenizer, spec), shape_of(recipe))


def _prepare_retained(
    recipe: Recipe, tokenizer: Tokenizer, recipe_dir: Path, cache: Path | None, workers: int | None
) -> SplitFacts:
    """Prepare the rows of evaluation.retain. The first row determines their task; rows that are too long are cut."""
    files = resolve([recipe.evaluation.retain or ""], recipe_dir)
    task = first_task(files)
    if task is None:
        raise InputError(
            "the task of these rows cannot be inferred",
            where=f"key evaluation.retain: {', '.join(map(str, files))}",
            remedy='rows need "messages", "prompt" and "completion", or "text"',
        )
    spec = EncodingSpec.of(recipe, task=task, too_long="truncate" if TASKS[task].has_prompt else "split")
    spec = replace(spec, columns=None)  # these files have the keys of the formats
    index = prepare_file(files, spec, tokenizer, max_rejects=recipe.data.max_rejects, cache=cache, workers=workers)
    return split_facts(index, read_summary(index.parent)["splits"]["train"])


def named_files(recipe: Recipe) -> list[str]:
    """Return all data files that the recipe names: training, validation and retain rows."""
    general = recipe.evaluation.retain
    return [
        *recipe.data.training_paths,
        *recipe.data.validation_paths,
        *([general] if general is not None else []),
    ]


def refuse_raw_copies(recipe: Recipe, names: Sequence[str], recipe_dir: Path) -> None:
    """Raise InputError if data.deidentify is set and rows would be cached unchanged: those of URLs, and of compressed
    files."""
    if recipe.data.deidentify is None:
        return
    if urls := [name for name in names if is_url(name)]:
        raise InputError(
            "data.deidentify does not support URLs: the original rows would be stored in the cache",
            where=urls[0],
            remedy="download the file to a safe place and use its path, or remove data.deidentify",
        )
    if files := [path for path in resolve(names, recipe_dir) if is_compressed(path)]:
        raise InputError(
            "data.deidentify does not support compressed files: the original rows would be stored in the cache",
            where=str(files[0]),
            remedy="decompress the file in a safe place and use its path, or remove data.deidentify",
        )


def first_task(files: Sequence[Path]) -> str | None:
    """Return the task indicated by the first readable row that indicates one; None if there is none."""
    for path in files:
        for shard in cut(path):
            for line in read(shard):
                if (task := guess_task(line.value)) is not None:
                    return task
    return None


def prepare_file(
    paths: Path | Sequence[Path],
    spec: EncodingSpec,
    tokenizer: Tokenizer,
    *,
    max_rejects: int = 0,
    csv_delimiter: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Path:
    """Prepare files for evaluation, without packing or splitting; return the directory of a TokenIndex.

    Rows are numbered from 0 over the files in order. Raises InputError as `prepare` does.
    """
    names = [str(path) for path in ([paths] if isinstance(paths, Path) else paths)]
    sources = read_sources(names, 0.0, Path.cwd(), progress, csv_delimiter)
    encoder = make_encoder(tokenizer, spec)
    shape = Shape(spec.max_seq_len, False, "keep", None, 0, paired=spec.facts.is_paired)
    return build(sources, encoder, shape, max_rejects, cache=cache, progress=progress, workers=workers) / "train"


def shape_of(recipe: Recipe) -> Shape:
    data = recipe.data
    share = data.validation if isinstance(data.validation, float) and data.validation > 0 else None
    return Shape(
        data.max_seq_len,
        recipe.packs,
        data.duplicates,
        share,
        recipe.seed,
        recipe.task_facts.is_paired,
        tuple(each.label for each in data.training_sets),
        tuple((each.label, each.max_rows) for each in data.training_sets if each.max_rows is not None),
    )


def read_labels(recipe: Recipe, sources: Sequence[Source]) -> list[str] | None:
    """Return the labels of a classification, from the recipe or the training files; None for other tasks. Raises
    InputError."""
    if not recipe.task_facts.is_classifier:
        return None
    train = [source for source in sources if not source.validation]
    own = {name: columns.renamed() for (name, held_out), columns in _own(recipe, "columns").items() if not held_out}
    common = recipe.data.columns.renamed() if recipe.data.columns is not None else {}
    rows = (renamed(line.value, own.get(source.dataset, common)) for source in train for line in read(source.shard))
    withheld = recipe.data.deidentify is not None
    labels = find_labels(rows, recipe.classification, _names(train), withheld)
    check_weights(recipe.classification, labels, withheld)
    return labels


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(dict.fromkeys(source.name for source in sources))


def with_labels(facts: DataFacts, recipe: Recipe, labels: list[str]) -> DataFacts:
    """Return the facts with the labels and the number of training rows of each in the index."""
    train = TokenIndex.open(Path(facts.train.index))
    targets = np.concatenate([train.targets(number) for number in range(train.num_documents)]).astype(np.int64)
    if recipe.classification.kind == "multi_label":
        counts = targets.reshape(-1, len(labels)).sum(0)
    else:
        counts = np.bincount(targets, minlength=len(labels))
    return facts.model_copy(update={"labels": labels, "label_counts": counts.tolist()})
