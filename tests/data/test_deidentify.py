"""Nothing of an original stays, the same gets the same, and the numbers of what was found are told."""

import json
import re

import pytest

from tunesmith.configs.recipe import Deidentify
from tunesmith.data.deidentify import deidentified
from tunesmith.data.name_lists import FALSE_FAMILY, FALSE_GIVEN, FAMILY, GIVEN
from tunesmith.data.refusal import Refusal

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


def test_nothing_of_the_originals_stays_and_the_rest_does():
    cleaned, found = deidentified(ROW, Deidentify())
    for original in ORIGINALS:
        assert original.lower() not in json.dumps(cleaned).lower(), original
    assert cleaned["label"] == "discharged"
    for word in ("Patient:", "MRN:", "was admitted on", "daughter", "Seen again"):
        assert word in cleaned["text"]
    assert set(found) == {"person", "number", "date", "phone", "email"}
    assert found["date"] == 3


def test_the_same_gets_the_same_inside_a_row():
    cleaned, _ = deidentified(ROW, Deidentify())
    text = cleaned["text"]
    first, last = re.match(r"Patient: (\w+) ([\w-]+),", text).groups()
    assert f"Mrs. {last} was admitted" in text
    assert f"{first}'s daughter" in text
    number = re.search(r"MRN: (\d+)", text)[1]
    assert f"record {number}" in text
    daughter = re.search(r"daughter \w+ (\w+) can", text)[1]
    assert text.endswith(f"{daughter} agreed.")


def test_surrogates_are_the_same_in_every_run_and_tell_nothing_of_the_original():
    assert deidentified(ROW, Deidentify()) == deidentified(ROW, Deidentify())
    other = json.loads(json.dumps(ROW).replace("Margaret", "Winifred").replace("00482913", "77712345"))
    assert deidentified(ROW, Deidentify())[0] == deidentified(other, Deidentify())[0]  # drawn from what is left alone
    assert deidentified(ROW, Deidentify(seed=1))[0] != deidentified(ROW, Deidentify())[0]


def test_forms_are_kept():
    text = "Seen on 2021-03-05, 3/14/21, 5 June 2020 and JUN 7. Call 0171 555 0199. MRN 88-1234. Mail a@b.org."
    cleaned, _ = deidentified(text, Deidentify())
    assert re.fullmatch(
        r"Seen on \d{4}-\d\d-\d\d, \d\d/\d\d/\d\d, \d+ [A-Z][a-z]+ \d{4} and [A-Z]+ \d+\. "
        r"Call \d{4} \d{3} \d{4}\. MRN \d\d-\d{4}\. Mail person\d+@example\.org\.",
        cleaned,
    ), cleaned


def test_messages_are_cleaned_together_and_their_roles_stay():
    row = {
        "messages": [
            {"role": "user", "content": "I am Fiona Braddock, order 4417233."},
            {"role": "assistant", "content": "Thank you, Ms. Braddock: 4417233 left today."},
        ]
    }
    cleaned, found = deidentified(row, Deidentify())
    asked, answered = (message["content"] for message in cleaned["messages"])
    assert [message["role"] for message in cleaned["messages"]] == ["user", "assistant"]
    name = re.search(r"I am \w+ (\w+), order (\d+)\.", asked)
    assert answered == f"Thank you, Ms. {name[1]}: {name[2]} left today."
    assert found == {"person": 2, "number": 2}


def test_only_what_is_asked_for_is_looked_for_and_skipped_keys_stay():
    cleaned, found = deidentified(ROW, Deidentify(kinds=["date"]))
    assert "Margaret" in cleaned["text"]
    assert set(found) == {"date"}
    row = {"text": "By Dr. Osgood.", "ward": "Osgood"}
    assert deidentified(row, Deidentify(skip=["ward"]))[0]["ward"] == "Osgood"


def test_a_text_without_anything_is_left_as_it_is():
    row = {"text": "Patient denies chest pain. Blood pressure 120/80, heart rate 72, 2 of 5 tablets. Will follow up."}
    assert deidentified(row, Deidentify()) == (row, {})


def test_a_refusals_reason_is_cleaned_too():
    refusal, _ = deidentified(Refusal("the label 'Dr. Osgood' is none of those", "mend it"), Deidentify())
    assert "Osgood" not in refusal.reason


def test_no_false_name_is_a_real_one_of_the_lists():
    false = {name.lower() for name in (*FALSE_GIVEN, *FALSE_FAMILY)}
    assert not false & (GIVEN | FAMILY)
    assert len(false) == len(FALSE_GIVEN) + len(FALSE_FAMILY)
    assert len(FALSE_GIVEN) >= 60
    assert len(FALSE_FAMILY) >= 60
