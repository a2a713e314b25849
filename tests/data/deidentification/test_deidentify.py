"""De-identification: originals are removed, replacements are consistent, and replacements are counted."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Columns, Deidentify
from tunesmith.configs.sections.objectives import Classification
from tunesmith.data.check import check_recipe
from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.data.deidentification.name_lists import FAMILY, GIVEN, SURROGATE_FAMILY, SURROGATE_GIVEN
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.prepare import prepare
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.named_label import NamedLabel
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.labels import check_weights, find_labels
from tunesmith.data.show import show
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError

pytest.importorskip("presidio_analyzer")

ROW = {
    "text": (
        "Patient: Margaret Quintrell-Blythe, MRN: 00482913, DOB 03/14/1951. Mrs. Quintrell-Blythe was admitted on "
        "March 3, 2021 by Dr. Xu. Margaret's daughter Philippa Osgood can be reached at (617) 555-0142 or "
        "p.osgood@blythe.net. Seen again 2021-03-05; record 00482913. Osgood agreed."
    ),
    "label": "discharged",
}
ORIGINALS = (
    "Margaret",
    "Quintrell",
    "Blythe",
    "00482913",
    "1951",
    "March 3",
    "2021",
    "Xu",
    "Philippa",
    "Osgood",
    "0142",
)


def test_originals_are_removed_and_other_text_is_kept():
    cleaned, counts = deidentified(ROW, Deidentify())
    for original in ORIGINALS:
        assert original.lower() not in json.dumps(cleaned).lower(), original
    assert cleaned["label"] == "discharged"
    for word in ("Patient:", "MRN:", "was admitted on", "daughter", "Seen again"):
        assert word in cleaned["text"]
    assert set(counts) == {"person", "number", "date", "phone", "email"}
    assert counts["date"] == 3


def test_replacements_are_consistent_within_a_row():
    cleaned, _ = deidentified(ROW, Deidentify())
    text = cleaned["text"]
    first, last = re.match(r"Patient: (\w+) ([\w-]+),", text).groups()
    assert f"Mrs. {last} was admitted" in text
    assert f"{first}'s daughter" in text
    number = re.search(r"MRN: (\d+)", text)[1]
    assert f"record {number}" in text
    daughter = re.search(r"daughter \w+ (\w+) can", text)[1]
    assert text.endswith(f"{daughter} agreed.")


def test_surrogates_are_reproducible_and_independent_of_the_originals():
    assert deidentified(ROW, Deidentify()) == deidentified(ROW, Deidentify())
    other = json.loads(json.dumps(ROW).replace("Margaret", "Winifred").replace("00482913", "77712345"))
    assert (
        deidentified(ROW, Deidentify())[0] == deidentified(other, Deidentify())[0]
    )  # drawn from the remaining text only
    assert deidentified(ROW, Deidentify(seed=1))[0] != deidentified(ROW, Deidentify())[0]


def test_surrogates_have_the_form_of_the_originals():
    text = "Seen on 2021-03-05, 3/14/21, 5 June 2020 and JUN 7. Call 0171 555 0199. MRN 88-1234. Mail a@b.org."
    cleaned, _ = deidentified(text, Deidentify())
    assert re.fullmatch(
        r"Seen on \d{4}-\d\d-\d\d, \d\d/\d\d/\d\d, \d+ [A-Z][a-z]+ \d{4} and [A-Z]+ \d+\. "
        r"Call \d{4} \d{3} \d{4}\. MRN \d\d-\d{4}\. Mail person\d+@example\.org\.",
        cleaned,
    ), cleaned


def test_messages_of_a_row_are_replaced_consistently_and_keep_their_roles():
    row = {
        "messages": [
            {"role": "user", "content": "I am Fiona Braddock, order 4417233."},
            {"role": "assistant", "content": "Thank you, Ms. Braddock: 4417233 left today."},
        ]
    }
    cleaned, counts = deidentified(row, Deidentify())
    question, answer = (message["content"] for message in cleaned["messages"])
    assert [message["role"] for message in cleaned["messages"]] == ["user", "assistant"]
    name = re.search(r"I am \w+ (\w+), order (\d+)\.", question)
    assert answer == f"Thank you, Ms. {name[1]}: {name[2]} left today."
    assert counts == {"person": 2, "number": 2}


def test_only_the_selected_kinds_are_replaced_and_skipped_keys_are_kept():
    cleaned, counts = deidentified(ROW, Deidentify(kinds=["date"]))
    assert "Margaret" in cleaned["text"]
    assert set(counts) == {"date"}
    row = {"text": "By Dr. Osgood.", "ward": "Osgood"}
    assert deidentified(row, Deidentify(skip=["ward"]))[0]["ward"] == "Osgood"


def test_a_text_without_identifying_information_is_unchanged():
    row = {"text": "Patient denies chest pain. Blood pressure 120/80, heart rate 72, 2 of 5 tablets. Will follow up."}
    assert deidentified(row, Deidentify()) == (row, {})


def test_the_reason_of_a_refusal_is_deidentified():
    refusal, _ = deidentified(
        Refusal("unknown_label", "the label 'Dr. Osgood' is not known", "correct it"), Deidentify()
    )
    assert "Osgood" not in refusal.reason


def test_surrogate_names_are_not_in_the_lists_of_real_names():
    surrogates = {name.lower() for name in (*SURROGATE_GIVEN, *SURROGATE_FAMILY)}
    assert not surrogates & (GIVEN | FAMILY)
    assert len(surrogates) == len(SURROGATE_GIVEN) + len(SURROGATE_FAMILY)
    assert len(SURROGATE_GIVEN) >= 60
    assert len(SURROGATE_FAMILY) >= 60


def test_format_keys_are_skipped_only_in_list_items():
    row = {"text": "By Dr. Osgood.", "from": "Dr. Osgood", "id": "Osgood", "turns": [{"from": "Osgood", "value": "x"}]}
    cleaned, _ = deidentified(row, Deidentify())
    assert "Osgood" not in cleaned["text"] + cleaned["from"] + cleaned["id"]
    assert cleaned["turns"] == row["turns"]


def test_numbers_are_replaced_by_numbers():
    call = {"id": "4417233", "type": "function", "function": {"name": "find", "arguments": {"order": 4417233}}}
    row = {
        "phone": 6175550142,
        "share": 0.5,
        "good": True,
        "label": 4417233,
        "messages": [{"role": "user", "content": "My order 4417233, call 6175550142.", "tool_calls": [call]}],
    }
    cleaned, counts = deidentified(row, Deidentify(skip=["label"]))
    assert "4417233" not in cleaned["messages"][0]["content"]
    order = cleaned["messages"][0]["tool_calls"][0]["function"]["arguments"]["order"]
    assert type(order) is int
    assert f"order {order}, call {cleaned['phone']}." in cleaned["messages"][0]["content"]
    assert type(cleaned["phone"]) is int
    assert cleaned["phone"] != 6175550142
    assert (cleaned["share"], cleaned["good"], cleaned["label"]) == (0.5, True, 4417233)
    assert counts.total() == 4


def test_a_label_with_a_name_is_kept():
    """Its number is that of a class, even if a record has the same."""
    label = NamedLabel(4417233, "discharged")
    cleaned, _ = deidentified({"text": "MRN: 4417233", "label": label}, Deidentify())
    assert "4417233" not in cleaned["text"]
    assert cleaned["label"] is label


def test_cells_of_renamed_columns_are_deidentified_like_messages(tiny_llama):
    """Not as JSON text, where an escape before a name hides it, and the ids of calls are replaced."""
    call = {"id": "4417233", "type": "function", "function": {"name": "find", "arguments": {"order": 4417233}}}
    messages = [
        {"role": "user", "content": "My order 4417233.\nMargaret Quintrell-Blythe"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "4417233", "content": "It was shipped."},
        {"role": "assistant", "content": "Thank you,\nMargaret."},
    ]
    spec = EncodingSpec("chat", 512, "error", deidentify=Deidentify(), omitted_fields="keep")
    tokenizer = Tokenizer.load(tiny_llama)
    (plain,) = make_encoder(tokenizer, spec).encode([{"messages": messages}])
    renaming = make_encoder(tokenizer, replace(spec, columns=Columns(messages="dialog")))
    (renamed, invalid) = renaming.encode([{"dialog": json.dumps(messages)}, {"dialog": "[Margaret Quintrell"}])
    assert "Margaret" not in tokenizer.decode(plain.documents[0].tokens)
    assert (renamed.documents, renamed.replaced) == (plain.documents, plain.replaced) != ([], {})
    assert 'the column "dialog" is not valid JSON' in invalid.reason


def test_the_message_of_a_rejected_row_names_no_key_and_no_label(tiny_llama):
    section = Classification(label_column="outcome")
    spec = EncodingSpec("classification", 64, "error", section, ("home", "ward"), Deidentify())
    encoder = make_encoder(Tokenizer.load(tiny_llama), spec)
    rows = [{"Osgood, P.": "x", "text": "y"}, {"text": "y", "outcome": "Quintrell"}]
    without, unknown = encoder.encode(rows)
    assert "it has 2 keys" in without.remedy
    assert "Osgood" not in without.reason + without.remedy
    assert "not a label" in unknown.reason
    assert "Quintrell" not in unknown.reason + unknown.remedy
    without, unknown = make_encoder(encoder.tokenizer, replace(spec, deidentify=None)).encode(rows)
    assert '"Osgood, P.", "text"' in without.remedy
    assert "Quintrell" in unknown.reason
    refusal, _ = deidentified(Refusal("empty", "bad", "ask Dr. Osgood"), Deidentify())
    assert "Osgood" not in refusal.remedy


def test_withheld_labels_are_counted_but_not_named():
    rows = [{"label": name} for name in ("Quintrell", "Osgood", "Xu")]
    with pytest.raises(InputError, match="not 3") as raised:
        find_labels(rows, Classification(kind="binary"), "notes", withheld=True)
    assert "Osgood" not in str(raised.value)
    with pytest.raises(InputError) as raised:
        check_weights(Classification(class_weights=[1.0, 2.0]), ["Quintrell", "Osgood", "Xu"], withheld=True)
    assert "Osgood" not in str(raised.value)


def test_retain_rows_are_deidentified_and_urls_are_rejected(tiny_llama, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "By Dr. Osgood."}) + "\n")
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "task": "text",
            "model": {"base": str(tiny_llama)},
            "method": {"kind": "full"},
            "data": {"train": ["rows.jsonl"], "deidentify": {}},
            "evaluation": {"retain": "rows.jsonl"},
        }
    )
    tokenizer = Tokenizer.load(tiny_llama)
    facts = prepare(recipe, tokenizer, recipe_dir=tmp_path, cache=tmp_path / "cache", workers=1)
    for split in (facts.train, facts.retain):
        text = tokenizer.decode(TokenIndex.open(Path(split.index)).document(0).tokens.tolist())
        assert text.startswith("By Dr. ")
        assert "Osgood" not in text
    with_url = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"train": [f"file://{tmp_path}/rows.jsonl"]})}
    )
    for call in (
        lambda: prepare(with_url, tokenizer, recipe_dir=tmp_path, cache=tmp_path / "other", workers=1),
        lambda: check_recipe(with_url, tokenizer, recipe_dir=tmp_path, cache=tmp_path / "other"),
        lambda: list(show(with_url, tokenizer, recipe_dir=tmp_path)),
    ):
        with pytest.raises(InputError, match="does not support URLs"):
            call()
    assert not (tmp_path / "other").exists()
