"""Templates with thinking, tools, dates, default system prompts and role checks: what is trained is what a server asks
for, and what a template inserts carries no loss."""

import json
from datetime import date

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tests.data.tokenization.families import PHI_3, SPECIAL
from tests.data.tokenization.thinking_families import SPECIAL_TOKENS, THINKING_FAMILIES
from tunesmith.data.encoders.by_task import encoder_from, make_encoder, portable
from tunesmith.data.encoders.language_model import prompt_tokens
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.show import segments
from tunesmith.data.tokenization.inserted import EMPTY_BLOCK
from tunesmith.data.tokenization.template_variables import UnreadableVariable, with_defaults
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

SYSTEM = {"role": "system", "content": "Answer as a pirate."}
ASK, ASK_MORE = {"role": "user", "content": "Two and two?"}, {"role": "user", "content": "And three?"}
PLAIN, PLAIN_MORE = {"role": "assistant", "content": "Four."}, {"role": "assistant", "content": "Seven."}
THINKING = {**PLAIN, "reasoning_content": "two and two make four"}
THINKING_MORE = {**PLAIN_MORE, "thinking": "four and three make seven"}
CALL = {"id": "callid001", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "note": "x"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "callid001", "name": "add"}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "note": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}]

ROWS = {
    "plain": ([ASK, PLAIN, ASK_MORE, PLAIN_MORE], None),
    "system": ([SYSTEM, ASK, PLAIN, ASK_MORE, PLAIN_MORE], None),
    "thinking": ([ASK, THINKING, ASK_MORE, THINKING_MORE], None),
    "thinking once": ([ASK, THINKING, ASK_MORE, PLAIN_MORE], None),
    "tools": ([ASK, CALLING, RESULT, PLAIN], TOOLS),
}
# What is rejected because the template does not show it, or for another prompt than it would answer at inference.
NO_THINKING = {"thinking", "thinking once"}
REJECTED = {
    **dict.fromkeys(("qwen-3-coder", "qwen-2.5", "llama-3.1", "llama-3.2", "deepseek-v3"), NO_THINKING),
    **dict.fromkeys(("granite", "deepseek-v3.1", "smollm-3"), NO_THINKING | {"tools"}),
    "deepseek-v3.1-tools": NO_THINKING,
    "gemma-4-large": NO_THINKING,
    "mistral-v0.3": NO_THINKING | {"system"},
    "glm-4.5": {"plain", "system", "thinking once", "tools", "thinking"},
}
VARIABLES = {
    "qwen-3": ({}, {"enable_thinking": False}),
    "gemma-4-large": ({}, {"enable_thinking": True}),
    "smollm-3": ({}, {"enable_thinking": False}),
    "gpt-oss": ({"reasoning_effort": "low"},),
    "glm-4.5": ({"enable_thinking": False},),
}
SETTINGS = [(family, values) for family in THINKING_FAMILIES for values in VARIABLES.get(family, ({},))]
STOPS = {
    "gpt-oss": {"<|return|>", "<|call|>"},  # not <|end|>, which follows the thinking
    "qwen-3": {"<|im_end|>"},
    "gemma-4": {"<turn|>"},
    PHI_3: {"<|end|>"},  # although another token follows it at the end of the text
}
TODAY = date(2026, 11, 30)


@pytest.fixture(scope="module")
def load(make_tokenizer_directory):
    """load(family, values) -> Tokenizer"""
    directories = {}

    def make(family: str, values: dict | None = None, **options) -> Tokenizer:
        if family not in directories:
            directory = make_tokenizer_directory(THINKING_FAMILIES.get(family, family))
            backend = Backend.from_file(str(directory / "tokenizer.json"))
            tokens = [AddedToken(token, special=True) for token in (*SPECIAL, *SPECIAL_TOKENS)]
            backend.add_special_tokens(tokens)
            backend.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
            backend.save(str(directory / "tokenizer.json"))
            if family == "gpt-oss":  # as published: an answer also ends with a call
                stops = [backend.token_to_id(token) for token in ("<|return|>", "<|call|>")]
                (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
            directories[family] = directory
        return Tokenizer.load(directories[family], today=TODAY, template_kwargs=values, **options)

    return make


def encoded(tokenizer: Tokenizer, messages, tools=None, **options):
    row = {"messages": messages, **({"tools": tools} if tools else {})}
    return make_encoder(tokenizer, EncodingSpec("chat", 2048, **options)).encode([row])[0]


def rejected_rows(family: str, values: dict) -> set[str]:
    if family == "qwen-3" and values.get("enable_thinking") is False:
        return NO_THINKING  # its prompt closes the thinking
    if family == "gemma-4-large" and values.get("enable_thinking"):
        return set()
    return REJECTED.get(family, set())


@pytest.mark.parametrize(("family", "values"), SETTINGS)
def test_every_trained_turn_follows_the_prompt_of_a_server(load, family, values):
    tokenizer = load(family, values)
    template = tokenizer.template
    outcomes = {}
    for name, (messages, tools) in ROWS.items():
        result = encoded(tokenizer, messages, tools, earlier_thinking="split")
        outcomes[name] = result.outcome
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        trained = 0
        for document in result.documents:
            starts = dict(document.supervised)
            for number in turns:
                text = template.render(messages[:number], tools, add_generation_prompt=True)
                prompt = prompt_tokens(tokenizer, text, messages[:number], tools)
                if document.tokens[: len(prompt)] != prompt:
                    continue
                start = min(start for start in starts if start >= len(prompt))
                between = tokenizer.decode(document.tokens[len(prompt) : start], skip_special_tokens=False)
                if template.insertions.are(between):
                    trained += 1
                    stop = starts[start]
                    assert document.tokens[stop - 1] in tokenizer.stop_token_ids
                    assert (messages[number]["content"] or "add") in tokenizer.decode(document.tokens[start:stop])
        assert trained == (len(turns) if result.documents else 0), (name, result.reason)
    assert {name for name, outcome in outcomes.items() if outcome == "rejected"} == rejected_rows(family, values)


@pytest.mark.parametrize(("family", "values"), SETTINGS)
@pytest.mark.parametrize("mode", ["template", "split"])
def test_an_inserted_empty_block_carries_no_loss(load, family, values, mode):
    tokenizer = load(family, values)
    for name in ("plain", "system", "thinking once"):
        result = encoded(tokenizer, ROWS[name][0], earlier_thinking=mode)
        for document in result.documents:
            for text, is_supervised in segments(tokenizer, document):
                assert not is_supervised or not EMPTY_BLOCK.search(text), (name, text)
                assert not is_supervised or "<|channel>thought\n<channel|>" not in text


def texts(tokenizer: Tokenizer, result, supervised: bool) -> list[str]:
    pieces = [piece for document in result.documents for piece in segments(tokenizer, document)]
    return [text for text, is_supervised in pieces if is_supervised == supervised]


def test_masks_are_those_of_the_family(load):
    expected = {
        ("qwen-3", "plain"): ["Four.<|im_end|>", "Seven.<|im_end|>"],
        ("qwen-3", "thinking once"): ["Four.<|im_end|>", "Seven.<|im_end|>"],
        ("smollm-3", "plain"): ["Four.<|im_end|>", "Seven.<|im_end|>"],
        ("gpt-oss", "plain"): [f"<|channel|>final<|message|>{text}" for text in ("Four.<|end|>", "Seven.<|return|>")],
        ("gemma-4-large", "plain"): ["Four.<turn|>", "Seven.<turn|>"],
        ("magistral", "thinking"): [
            "[THINK]two and two make four[/THINK]Four.</s>",
            "[THINK]four and three make seven[/THINK]Seven.</s>",
        ],
    }
    for (family, name), supervised in expected.items():
        tokenizer = load(family)
        assert texts(tokenizer, encoded(tokenizer, ROWS[name][0]), True) == supervised, family
    tokenizer = load("qwen-3")
    result = encoded(tokenizer, ROWS["thinking"][0])
    assert texts(tokenizer, result, True)[1] == "<think>\nfour and three make seven\n</think>\n\nSeven.<|im_end|>"
    assert result.omitted == {"thinking": 1}


def test_what_is_inserted_is_named(load):
    block = "<think>\n\n</think>\n\n"
    for values in ({}, {"enable_thinking": False}):
        assert encoded(load("qwen-3", values), [ASK, PLAIN]).inserted == {block: 1}
    assert encoded(load("qwen-3"), [ASK, THINKING]).inserted == {}
    assert encoded(load("qwen-3"), [ASK, {**PLAIN, "weight": 0}, ASK, THINKING]).inserted == {}
    assert encoded(load("gemma-4-large"), [ASK, PLAIN]).inserted == {"<|channel>thought\n<channel|>": 1}
    assert encoded(load("gemma-4-large", {"enable_thinking": True}), [ASK, PLAIN]).inserted == {}
    assert encoded(load("smollm-3", {"enable_thinking": False}), [ASK, PLAIN]).inserted == {"<think>\n\n</think>\n": 1}


def test_a_block_of_the_row_itself_is_trained(load):
    written = {"role": "assistant", "content": "<think>\n\n</think>\n\nFour."}
    tokenizer = load("qwen-3")
    result = encoded(tokenizer, [ASK, written])
    assert texts(tokenizer, result, True) == ["<think>\n\n</think>\n\nFour.<|im_end|>"]
    assert result.inserted == {}


def test_split_trains_every_turn_once_with_its_thinking(load):
    tokenizer = load("qwen-3")
    result = encoded(tokenizer, [ASK, THINKING, ASK_MORE, THINKING_MORE], earlier_thinking="split")
    assert [texts(tokenizer, result, True)[n] for n in range(2)] == [
        "<think>\ntwo and two make four\n</think>\n\nFour.<|im_end|>",
        "<think>\nfour and three make seven\n</think>\n\nSeven.<|im_end|>",
    ]
    assert (result.outcome, len(result.documents), result.omitted) == ("kept", 2, {})
    assert "<think>\ntwo" not in texts(tokenizer, result, False)[-2]
    loop = [ASK, {**CALLING, "reasoning_content": "I add"}, RESULT, THINKING]  # one question: all thinking is shown
    assert len(encoded(tokenizer, loop, TOOLS, earlier_thinking="split").documents) == 1
    masked = [ASK, {**THINKING, "weight": 0}, ASK_MORE, THINKING_MORE]
    result = encoded(tokenizer, masked, earlier_thinking="split")
    assert (result.outcome, len(result.documents), result.omitted) == ("masked", 1, {"thinking": 1})
    ends_on_question = encoded(tokenizer, [ASK, THINKING, ASK_MORE], earlier_thinking="split")
    assert texts(tokenizer, ends_on_question, True) == ["<think>\ntwo and two make four\n</think>\n\nFour.<|im_end|>"]
    assert len(encoded(load("qwen-2.5"), ROWS["plain"][0], earlier_thinking="split").documents) == 1


def test_a_part_that_is_too_long_is_counted(load):
    tokenizer, long = load("qwen-3"), {**THINKING_MORE, "content": "Seven. " * 400}
    row = {"messages": [ASK, THINKING, ASK_MORE, long]}
    spec = EncodingSpec("chat", 256, "drop", earlier_thinking="split")
    (result,) = make_encoder(tokenizer, spec).encode([row])
    assert (result.outcome, len(result.documents)) == ("truncated", 1)
    assert result.lost_tokens > 400
    (rejected,) = make_encoder(tokenizer, EncodingSpec("chat", 256, earlier_thinking="split")).encode([row])
    assert (rejected.outcome, rejected.code) == ("rejected", "too_long")


def test_reject_and_template_differ_in_thinking_of_earlier_turns_only(load):
    tokenizer, rows = load("qwen-3"), [ROWS["plain"][0], ROWS["thinking"][0]]
    outcomes = [
        [encoded(tokenizer, row, earlier_thinking=mode).outcome for row in rows] for mode in ("template", "reject")
    ]
    assert outcomes == [["kept", "kept"], ["kept", "rejected"]]
    rejected = encoded(tokenizer, rows[1], earlier_thinking="reject")
    assert "messages[1].reasoning_content" in rejected.reason
    assert "data.earlier_thinking to split" in rejected.remedy
    last = encoded(tokenizer, [ASK, THINKING, ASK_MORE])  # the thinking of a trained turn that is no earlier turn
    assert (last.outcome, last.code) == ("rejected", "omitted_field")


def test_pairs_are_not_split(load):
    for task in ("preference", "kto"):
        with pytest.raises(InputError, match="cannot be split into turns"):
            make_encoder(load("qwen-3"), EncodingSpec(task, 256, earlier_thinking="split"))


def test_tokens_inside_of_an_answer_do_not_end_it(load):
    names = {family: {load(family).backend.id_to_token(n) for n in load(family).stop_token_ids} for family in STOPS}
    assert names == {family: {*tokens, "</s>"} for family, tokens in STOPS.items()}


# --- Variables -------------------------------------------------------------------------------------------------------


def test_a_variable_that_the_template_does_not_read_is_an_error(load):
    with pytest.raises(UnreadableVariable, match="did you mean 'enable_thinking'") as raised:
        load("qwen-3", {"enable_thinkin": False})
    assert raised.value.where == "model.chat_template_kwargs.enable_thinkin"
    for name in ("messages", "add_generation_prompt", "eos_token", "content"):
        with pytest.raises(UnreadableVariable, match=name):
            load("qwen-3", {name: "x"})
    assert load("gpt-oss").template.variables_read == {"reasoning_effort", "model_identity"}
    assert load("granite").template.variables_read == frozenset()


def test_values_reach_every_rendering_and_other_processes(load):
    tokenizer = load("qwen-3", {"enable_thinking": False})
    assert tokenizer.fingerprint != load("qwen-3").fingerprint
    assert tokenizer.template.render([ASK], add_generation_prompt=True).endswith("</think>\n\n")
    assert load("qwen-3").template.render([ASK], add_generation_prompt=True).endswith("assistant\n")
    again = encoder_from(portable(make_encoder(tokenizer, EncodingSpec("chat", 64, earlier_thinking="split"))))
    assert again.tokenizer.fingerprint == tokenizer.fingerprint
    assert again.spec.earlier_thinking == "split"


@pytest.mark.parametrize("family", ["qwen-3", "gpt-oss", "smollm-3"])
def test_defaults_of_an_export_give_the_prompts_of_the_training(load, family):
    values = {"gpt-oss": {"reasoning_effort": 'a "quoted" naïve 😀'}}.get(family, {"enable_thinking": False})
    exported = load(with_defaults(THINKING_FAMILIES[family], values))
    trained = load(family, values)
    for messages, tools in (([ASK], None), ([SYSTEM, ASK, PLAIN, ASK], TOOLS)):
        prompts = [t.template.render(messages, tools, add_generation_prompt=True) for t in (trained, exported)]
        assert prompts[0] == prompts[1]
    assert exported.template.variables_read == trained.template.variables_read
    other = {name: "low" if isinstance(value, str) else True for name, value in values.items()}
    overridden = exported.with_template_kwargs(other).template.render([ASK], add_generation_prompt=True)
    assert overridden == load(family, other).template.render([ASK], add_generation_prompt=True)


def test_defaults_are_literals_of_any_json_value():
    import jinja2

    value = [None, True, 1.5, {"b": "ü\"'😀\n"}]
    assert (
        json.loads(jinja2.Environment().from_string(with_defaults("{{ a | tojson }}", {"a": value})).render()) == value
    )
