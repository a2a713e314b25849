"""Whatever stands under the keys of the formats, a row is read or rejected with a remedy; nothing else is raised."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.tokenization.families import QWEN_3
from tunesmith.configs.sections.objectives import Classification, Seq2Seq
from tunesmith.configs.tasks import TASKS
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.rows.formats import read_row
from tunesmith.data.rows.known_keys import ignored_keys
from tunesmith.data.rows.shapes.columns import COLUMNS_OF_TASK
from tunesmith.data.tokenization.tokenizer import Tokenizer

LEAVES = st.sampled_from(
    [None, True, 0, 1, 2.5, "", " ", "q", "true", "[]", '["a"]', "{", "\n\nHuman: q\n\nAssistant: a", "a\0", "\ud800"]
)
ROLES = st.sampled_from(
    ["human", "gpt", "user", "assistant", "tool", "function_call", "observation", "system", None, 3]
)
TURNS = st.fixed_dictionaries(
    {},
    optional={"from": ROLES, "value": LEAVES, "role": ROLES, "content": LEAVES, "tool_calls": LEAVES, "weight": LEAVES},
)
VALUES = LEAVES | TURNS | st.lists(TURNS | LEAVES | st.lists(LEAVES, max_size=3), max_size=3)
KEYS = sorted({*(key for keys in COLUMNS_OF_TASK.values() for key in keys), "preferred_output", "kto_tag", "functions"})
SECTIONS = {"classification": Classification(kind="multi_label"), "seq2seq": Seq2Seq()}
ROWS = st.dictionaries(st.sampled_from([*KEYS, "sentence1", "sentence2"]), VALUES, max_size=6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("has_template", [True, False])
def test_any_row_is_read_or_rejected(tiny_llama, task, has_template):
    tokenizer = Tokenizer.load(tiny_llama)
    if not has_template:
        if task == "chat":
            pytest.skip("a chat needs a template")
        tokenizer.template = None
    section = SECTIONS.get(task)
    encoder = make_encoder(tokenizer, EncodingSpec(task, 256, "error", section, ("a", "b")))

    @given(ROWS)
    @settings(max_examples=40, deadline=None, database=None)
    def check(row):
        (result,) = encoder.encode([row])
        assert result.documents or (result.outcome == "rejected" and result.reason and result.remedy)
        assert set(ignored_keys(row, task, section, {})) <= row.keys()

    check()


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def with_arguments(arguments):
    return {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    }


@pytest.fixture(scope="module")
def with_tools(tiny_llama, tmp_path_factory) -> RowEncoder:
    """An encoder whose template renders tools and calls."""
    template = tmp_path_factory.mktemp("template") / "qwen.jinja"
    template.write_text(QWEN_3)
    return make_encoder(Tokenizer.load(tiny_llama, template), EncodingSpec("chat", 4096, "error"))


@pytest.mark.parametrize(
    "row_with",
    [
        lambda text: with_arguments(f'{{"x": {text}}}'),
        lambda text: {"messages": [USER, ANSWER], "tools": f'[{{"type": "function", "function": {text}}}]'},
        lambda text: {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": f'{{"name": "f", "arguments": {{"x": {text}}}}}'},
            ]
        },
    ],
    ids=["arguments", "tools", "function_call"],
)
@given(depth=st.integers(65, 2000), is_closed=st.booleans())
@settings(max_examples=20, database=None)
def test_deeply_nested_json_texts_are_rejected(with_tools, row_with, depth, is_closed):
    (result,) = with_tools.encode([row_with("[" * depth + "]" * depth * is_closed)])
    assert result.outcome == "rejected"
    assert "nested more than 64 deep" in result.reason


PARQUET = st.dates() | st.datetimes() | st.times() | st.timedeltas() | st.binary() | st.decimals(allow_nan=False)


@given(PARQUET, PARQUET)
@settings(max_examples=30, database=None)
def test_values_that_only_tables_have_are_part_of_the_row(with_tools, value, other):
    """Times, bytes and exact decimals in messages, tools and arguments."""
    one, same, two = (
        [
            {"messages": [USER | {"sent": item}, ANSWER]},
            {"messages": [USER, ANSWER], "tools": [{"function": {"name": "f", "since": item}}]},
            with_arguments({"x": item}),
        ]
        for item in (value, value, other)
    )
    for result in with_tools.encode(one):
        assert result.documents or (result.outcome == "rejected" and result.reason and result.remedy)
    keys, equal, different = ([read_row(row, "chat").key() for row in rows] for rows in (one, same, two))
    assert keys == equal
    assert str(value) == str(other) or not set(keys) & set(different)
