"""Keys of rows that have a meaning for a task, so that `data check` can name the others, which are ignored."""

from collections.abc import Mapping

from pydantic import BaseModel

from tunesmith.configs.sections.objectives import Classification, Seq2Seq
from tunesmith.configs.tasks import TASKS
from tunesmith.data.rows.context import CONTEXT_KEYS
from tunesmith.data.rows.formats import FORMS, form_of
from tunesmith.data.rows.shapes.columns import COLUMNS_OF_TASK, renamed
from tunesmith.data.rows.shapes.rated import LABEL_KEYS
from tunesmith.data.rows.shapes.texts import PAIR_KEY, PAIRS

_OPENAI_PAIR = ("preferred_output", "non_preferred_output")


def ignored_keys(value: object, task: str, section: BaseModel | None, columns: Mapping[str, str]) -> list[str]:
    """Return the keys of a row that are not read. section: the task's options. columns: as in `renamed`."""
    row = renamed(value, columns)
    if not isinstance(value, dict) or not isinstance(row, dict):
        return []
    known = _known(row, task, section)
    if not known:
        return []
    read = {key for key in row if key in known and key not in columns} | set(columns.values())
    return [str(key) for key in value if key not in read]


def _known(row: Mapping[str, object], task: str, section: BaseModel | None) -> tuple[str, ...]:
    if isinstance(section, Classification):
        texts = (section.text_column, PAIR_KEY) if row.get(section.text_column) is not None else sum(PAIRS, ())
        return (*texts, section.label_column)
    if isinstance(section, Seq2Seq):
        return (section.source_column, section.target_column)
    if TASKS[task].counts_samples:
        own = _OPENAI_PAIR if TASKS[task].is_paired else LABEL_KEYS
        return (*COLUMNS_OF_TASK[task], *CONTEXT_KEYS, *own)
    form = form_of(row, task)
    return FORMS[form] if form is not None else ()
