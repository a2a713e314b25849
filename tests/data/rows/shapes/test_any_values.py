"""Whatever stands under the keys of the formats, a row is read or rejected with a remedy; nothing else is raised."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.configs.recipe import Classification, Seq2Seq
from tunesmith.configs.tasks import TASKS
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
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
