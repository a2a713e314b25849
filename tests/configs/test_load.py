"""Invalid recipes: every problem is reported with its place, the allowed values and a remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.configs.load import load_recipe, load_recipe_text
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Full, LastLayers, Lora
from tunesmith.errors import InputError

RECIPE = """\
name: support-bot
model: {base: models/smollm2-135m}          # a Hugging Face directory, a hub id, or a GGUF file
task: chat
method: {kind: lora, lora_rank: 16, lora_alpha: 32, target_modules: all-linear}
data: {train: [support.jsonl], validation: 0.1, max_seq_len: 512, too_long: error, packing: true, max_rejects: 0}
optimization:
  learning_rate: 2.0e-4
  schedule: cosine
  warmup_fraction: 0.03
  global_batch_size: 8
  epochs: 1
checkpoint: {every_steps: 20, keep_last: 3}
evaluation: {every_steps: 20}
seed: 7
"""


def error_of(text: str, *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_recipe_text(text, "my.yaml", overrides)
    message = str(caught.value)
    assert "pydantic" not in message
    assert "http" not in message
    assert "Input should" not in message
    return caught.value


def swapped(old: str, new: str) -> str:
    assert old in RECIPE
    return RECIPE.replace(old, new, 1)


def test_the_recipe_of_the_readme_is_valid_as_written():
    recipe = load_recipe_text(RECIPE)
    assert isinstance(recipe.method, Lora)
    assert (recipe.method.lora_rank, recipe.data.max_seq_len, recipe.seed) == (16, 512, 7)
    assert recipe.optimization.learning_rate == 2e-4
    assert recipe.evaluation.max_new_tokens == 64  # a default


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "hint"),
    [
        ("learning_rate", "learning_rat", 7, "optimization.learning_rat", "`optimization.learning_rate`"),
        ("batch_size", "batchsize", 10, "optimization.global_batchsize", "`optimization.global_batch_size`"),
        ("seed: 7", "sead: 7", 14, "sead", "`seed`"),
        ("seed: 7", "learning_rate: 7", 14, "learning_rate", "`optimization.learning_rate`"),
        ("seed: 7", "lora_rnk: 7", 14, "lora_rnk", "`method.lora_rank`"),
        ("seed: 7", "zzz: 7", 14, "zzz", "name, model, task, method, data"),
        ("lora_rank", "lora_ranks", 4, "method.lora_ranks", "`method.lora_rank`"),
    ],
)
def test_an_unknown_key_names_file_line_key_and_the_nearest_known_key(old, new, line, key, hint):
    error = error_of(swapped(old, new))
    assert f"`{key}`" in error.what
    assert error.where == f"my.yaml:{line}, key {key}"
    assert hint in (error.remedy or "")


@pytest.mark.parametrize(
    ("old", "new", "key", "allowed", "given"),
    [
        ("epochs: 1", "epochs: true", "optimization.epochs", "an integer, 1 or more", "true"),
        ("epochs: 1", "epochs: 1.5", "optimization.epochs", "an integer, 1 or more", "1.5"),
        ("epochs: 1", "epochs: 0", "optimization.epochs", "an integer, 1 or more", "0"),
        ("epochs: 1", "epochs: many", "optimization.epochs", "an integer", "many"),
        ("epochs: 1", 'epochs: "1"', "optimization.epochs", "an integer", '"1"'),
        ("2.0e-4", "-1", "optimization.learning_rate", "a number, 0 or more", "-1"),
        ("2.0e-4", ".nan", "optimization.learning_rate", "a number, 0 or more", ".nan"),
        ("2.0e-4", ".inf", "optimization.learning_rate", "a number, 0 or more", ".inf"),
        ("0.03", "1", "optimization.warmup_fraction", "0 or more and below 1", "1"),
        ("max_seq_len: 512", "max_seq_len: 4", "data.max_seq_len", "8 or more", "4"),
        ("packing: true", "packing: maybe", "data.packing", "true or false", "maybe"),
        ("0.1", "yes", "data.validation", "a number, 0 or more and below 1, or a list of strings", "yes"),
        ("0.1", "110%", "data.validation", "a number, 0 or more and below 1, or a list of strings", "110%"),
        ("0.1", "100%", "data.validation", "0 or more and below 1", "100%"),
        ("{every_steps: 20}", "3", "evaluation", "a section with the keys every_steps", "3"),
        ("support-bot", "my bot", "name", "letters, digits, dot, dash and underscore", "my bot"),
        ("seed: 7", "seed: -1", "seed", "0 or more", "-1"),
        ("seed: 7", "precision: fp64", "precision", "one of auto, fp32, bf16, fp16", "fp64"),
    ],
)
def test_an_invalid_value_is_reported_with_the_allowed_and_the_given_value(old, new, key, allowed, given):
    error = error_of(swapped(old, new))
    assert error.what.startswith(f"`{key}` takes ")
    assert allowed in error.what
    assert error.what.endswith(f"given: {given}")
    assert f"key {key}" in (error.where or "")
    assert error.where.startswith("my.yaml:")


@pytest.mark.parametrize(("written", "fraction"), [("10%", 0.1), ("2.5 %", 0.025), ('"10%"', 0.1), ("0%", 0.0)])
def test_a_percentage_of_the_rows_is_held_out(written, fraction):
    assert load_recipe_text(swapped("validation: 0.1", f"validation: {written}")).data.validation == fraction


def test_a_wrong_percentage_is_no_list_of_files():
    assert "0.1, or 10%" in error_of(swapped("validation: 0.1", "validation: 110%")).remedy
    assert "write it as a list" in error_of(swapped("validation: 0.1", "validation: held-out.jsonl")).remedy


@pytest.mark.parametrize(
    ("old", "new", "remedy"),
    [
        ("task: chat", "task: chatt", "did you mean `chat`?"),
        ("schedule: cosine", "schedule: cosin", "did you mean `cosine`?"),
        ("kind: lora", "kind: lorra", "did you mean `lora`?"),
        ("kind: lora", "kind: prefix-tuning", "one of full, last_layers, lora"),
        ("{kind: lora, ", "{", "add `kind:` with one of full, last_layers, lora"),
        ("[support.jsonl]", "support.jsonl", "train: [support.jsonl]"),
        ("name: support-bot", "name: no", 'write "no" with quotes'),
        ("name: support-bot\n", "", "add `name: my-run`"),
        ("{base: models/smollm2-135m}", "{}", "add it: a string"),
        ("seed: 7", "seed: 7\nseed: 8", "the first is in line 14"),
        ("kind: lora", "kind: full", "remove `lora_rank`"),
    ],
)
def test_the_remedy_fits_the_mistake(old, new, remedy):
    assert remedy in str(error_of(swapped(old, new)))


def test_all_problems_are_reported_together_in_file_order():
    text = RECIPE.replace("task: chat", "task: chatt").replace("epochs: 1", "epochs: 0").replace("seed: 7", "sede: 7")
    message = str(error_of(text, "data.foo=1"))
    assert "4 problems" in message
    places = [message.index(place) for place in ("my.yaml:3", "my.yaml:11", "my.yaml:14", "--set data.foo=1")]
    assert places == sorted(places)


@pytest.mark.parametrize("written", ["2e-4", "2.0e-4", "2E-4", "0.0002", "2_0e-5"])
def test_a_number_without_a_dot_is_read_as_a_number(written):
    recipe = load_recipe_text(swapped("2.0e-4", written))
    assert recipe.optimization.learning_rate == 2e-4


def test_a_number_without_a_dot_stays_a_string_for_a_string_key():
    assert load_recipe_text(swapped("support-bot", "2e-4")).name == "2e-4"


def test_an_integer_may_be_written_with_an_exponent():
    assert load_recipe_text(RECIPE, overrides=["optimization.max_steps=1e3"]).optimization.max_steps == 1000


@given(st.floats(min_value=1e-12, max_value=1e3, allow_subnormal=False), st.sampled_from(["e", "f", "g", "r"]))
def test_every_number_format_is_read(value, form):
    text = repr(value) if form == "r" else f"{value:.17{form}}"
    recipe = load_recipe_text(RECIPE, overrides=[f"optimization.learning_rate={text}"])
    assert recipe.optimization.learning_rate == float(text)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("name: x\ndata: {train: [a\n", 2, "not valid YAML"),
        ("name: x\n\tdata: 1\n", 2, "spaces"),
        ("a: b: c", 1, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ('name: !!python/object/apply:os.system ["true"]', 1, "not allowed"),
        ("name: *unknown", 1, "not valid YAML"),
        ("? [a, b]\n: 1\n", 1, "a key must be a scalar"),
        ("<<: 3\n", 1, "not valid YAML"),
    ],
)
def test_invalid_yaml_is_reported_with_its_line(text, line, word):
    error = error_of(text)
    assert (error.where or "").startswith(f"my.yaml:{line}, column ")
    assert word in str(error)


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "[" * 3000, "x: \x00", "", "# only a comment", "- a\n- b", "just words"]
)
def test_text_that_is_not_a_recipe_is_an_input_error(text):
    assert error_of(text).exit_code == 2


def test_the_expansion_of_nested_aliases_is_limited():
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    assert "more than 10000 values" in str(error_of(text))


def test_merge_keys_are_not_duplicates():
    text = swapped("checkpoint: {every", "evaluation_of_mine: &e {every_steps: 3}\ncheckpoint: {every")
    text = text.replace("evaluation: {every_steps: 20}", "evaluation: {<<: *e, every_steps: 5}")
    assert "evaluation_of_mine" in str(error_of(text))  # the anchor's key is unknown, the only problem
    merged = swapped("{every_steps: 20, keep_last: 3}", "&c {every_steps: 20}")
    merged = merged.replace("evaluation: {every_steps: 20}", "evaluation: {<<: *c, every_steps: 5}")
    assert load_recipe_text(merged).evaluation.every_steps == 5


def test_an_empty_section_has_the_default_values():
    text = swapped("{every_steps: 20, keep_last: 3}", "\n  # every_steps: 20")
    assert load_recipe_text(text).checkpoint == Recipe.model_fields["checkpoint"].default


# --- overrides


def test_overrides_replace_values_and_create_sections():
    recipe = load_recipe_text(
        "name: x\nmodel: {base: m}\nmethod: {kind: full}\ndata: {train: [a.jsonl]}\n",
        overrides=[
            "optimization.learning_rate=3e-5",
            "evaluation.early_stopping.patience=2",
            "data.train=[b.jsonl, c.jsonl]",
            "optimization.max_grad_norm=null",
            "optimization.max_grad_norm=",
            "optimization.epochs=2",
            "optimization.epochs=4",
        ],
    )
    assert recipe.optimization.learning_rate == 3e-5
    assert recipe.evaluation.early_stopping is not None
    assert recipe.evaluation.early_stopping.patience == 2
    assert recipe.data.train == ["b.jsonl", "c.jsonl"]
    assert recipe.optimization.max_grad_norm is None
    assert recipe.optimization.epochs == 4


def test_overriding_the_method_kind_removes_the_keys_of_the_old_kind():
    assert load_recipe_text(RECIPE, overrides=["method.kind=full"]).method == Full(kind="full")
    recipe = load_recipe_text(RECIPE, overrides=["method.kind=last_layers", "method.num_layers=3"])
    assert recipe.method == LastLayers(kind="last_layers", num_layers=3)


def test_overriding_the_method_kind_still_reports_unknown_keys():
    error = error_of(RECIPE, "method.kind=full", "method.lora_rank=3")
    assert error.where == "--set method.lora_rank=3, key method.lora_rank"
    assert "lora_rnk" in str(error_of(swapped("lora_rank", "lora_rnk"), "method.kind=full"))


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("data..train=3", "key=value"),
        ("data.train=[", "not valid YAML"),
        ("data.foo=1", "unknown key `data.foo`"),
        ("foo.bar.baz=1", "unknown key `foo`"),
        ("data.train.x=1", "`data.train` is not a section"),
        ("optimization.epochs=two", "an integer"),
        ("optimization.learning_rat=1", "did you mean `optimization.learning_rate`?"),
        ("method=lora", "a section whose key `kind` is one of"),
        ("method.kind=[1]", "`method.kind` takes one of"),
    ],
)
def test_an_invalid_override_is_quoted_in_the_error(override, word):
    error = error_of(RECIPE, override)
    assert (error.where or "").startswith(f"--set {override}")
    assert word in str(error)


# --- files


def test_a_missing_recipe_lists_the_recipes_in_its_directory(tmp_path):
    (tmp_path / "support.yaml").write_text(RECIPE)
    (tmp_path / "other.yml").write_text(RECIPE)
    with pytest.raises(InputError, match="recipe not found") as caught:
        load_recipe(tmp_path / "suport.yaml")
    assert caught.value.where == str(tmp_path / "suport.yaml")
    assert "support.yaml, other.yml" in (caught.value.remedy or "")
    with pytest.raises(InputError, match="check the path"):
        load_recipe(tmp_path / "nowhere" / "suport.yaml")


def test_directories_and_files_that_are_not_text_are_rejected(tmp_path):
    with pytest.raises(InputError, match="directory"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(RECIPE.replace("support-bot", "Bär").encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n" * 500_000)
    with pytest.raises(InputError, match="too large for a recipe"):
        load_recipe(tmp_path / "rows.jsonl")


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_text(RECIPE, encoding="utf-8-sig")
    assert load_recipe(path).name == "support-bot"


SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs" / "recipes").glob("*.yaml"))


def test_recipes_are_shipped():
    assert len(SHIPPED) >= 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("written", "value"), [("off", "off"), ("auto", "auto"), ("'off'", "off"), ("[rope, swiglu]", ["rope", "swiglu"])]
)
def test_kernels_are_read_as_written(written, value):
    """YAML 1.1 reads a bare `off` as false."""
    assert load_recipe_text(RECIPE + f"kernels: {written}\n").kernels == value
    assert load_recipe_text(RECIPE, overrides=[f"kernels={written}"]).kernels == value


def test_an_unknown_kernel_is_reported_with_the_known_ones():
    assert "rms_norm" in str(error_of(RECIPE + "kernels: [rms_norn]\n"))
    assert "auto" in str(error_of(RECIPE + "kernels: true\n"))


def test_fp8_is_rejected_with_what_to_use_instead():
    error = error_of(swapped("seed: 7", "precision: fp8"))
    assert "one of auto, fp32, bf16, fp16; given: fp8" in error.what
    assert "fp8 is not supported" in error.remedy
    assert "use bf16" in error.remedy
