"""Templates that print the date: a run renders with the date that its plan keeps, in every process and on every day."""

from datetime import date

import pytest

from tests.data.tokenization.families import LLAMA_3_2
from tunesmith.configs.plan import DataFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.data.encoders.by_task import encoder_from, make_encoder, portable
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.prepare import prepare
from tunesmith.data.tokenization.planned import rendering_date
from tunesmith.data.tokenization.tokenizer import Tokenizer

THEN = date(2024, 2, 29)
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


@pytest.fixture(scope="module")
def directory(make_tokenizer_directory):
    return make_tokenizer_directory(LLAMA_3_2)


def test_the_date_is_that_of_the_plan_or_the_current_one(directory):
    then, now = Tokenizer.load(directory, today=THEN), Tokenizer.load(directory)
    assert "Today Date: 29 Feb 2024" in then.template.render(ROW["messages"])
    assert (then.template.today, now.template.today) == ("2024-02-29", date.today().isoformat())
    assert then.fingerprint == Tokenizer.load(directory, today=THEN).fingerprint != now.fingerprint


def test_the_date_does_not_matter_to_other_templates(tokenizers):
    chatml = tokenizers["chatml"]
    then = Tokenizer.load(chatml.directory, today=THEN)
    assert (then.template.today, then.fingerprint) == (None, chatml.fingerprint)


def test_another_process_prepares_with_the_same_date(directory):
    encoder = make_encoder(Tokenizer.load(directory, today=THEN), EncodingSpec("chat", 256))
    copy = encoder_from(portable(encoder))
    assert copy.encode([ROW]) == encoder.encode([ROW])
    assert "29 Feb 2024" in copy.tokenizer.decode(copy.encode([ROW])[0].documents[0].tokens)


def test_the_prepared_rows_record_the_date_and_are_found_again_with_it(directory, tokenizers, write_jsonl, tmp_path):
    data = {"train": [str(write_jsonl("rows.jsonl", [ROW]))], "max_seq_len": 256}
    recipe = Recipe(name="t", model={"base": "m"}, method={"kind": "full"}, data=data)  # type: ignore[arg-type]
    first = prepare(recipe, Tokenizer.load(directory, today=THEN), recipe_dir=tmp_path)
    assert first.rendered_on == "2024-02-29"
    assert DataFacts.model_validate_json(first.model_dump_json()) == first
    again = prepare(recipe, Tokenizer.load(directory, today=rendering_date(first.rendered_on)), recipe_dir=tmp_path)
    assert again == first
    assert prepare(recipe, Tokenizer.load(directory), recipe_dir=tmp_path).fingerprint != first.fingerprint
    assert prepare(recipe, tokenizers["chatml"], recipe_dir=tmp_path).rendered_on is None
