"""docs/models.md is written from models.json, and covers what the project promises."""

import json
from pathlib import Path

import pytest

from tools.proving.results import Results
from tools.proving.table import COLUMNS, models_page, passed, trained

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAMED = (
    *("Llama", "Llama4", "Mistral", "Ministral", "Mixtral", "Qwen2", "Qwen3", "Qwen3Moe", "Qwen3_5", "Qwen3_5Moe"),
    *("Gemma", "Gemma2", "Gemma3", "Gemma4", "Phi", "Phi3", "Phimoe", "GptOss", "DeepseekV2", "DeepseekV3", "Glm4"),
    *("Granite", "Cohere2", "Olmo2", "Olmo3", "SmolLM3", "Falcon", "GPTNeoX", "StableLm", "Mamba", "NemotronH"),
)


@pytest.fixture(scope="module")
def results() -> Results:
    path = DOCS / "models.json"
    return Results(path, json.loads(path.read_text(encoding="utf-8"))["environment"], keep=True)


def test_the_page_is_that_of_the_results(results):
    assert (DOCS / "models.md").read_text(encoding="utf-8") == models_page(results), "run `make prove-models`"


def test_nine_of_ten_decoders_are_trained_and_seven_are_served(results):
    decoders = {name: s for name, s in results.classes.items() if "excluded" not in s["build"]}
    assert len(decoders) > 130
    assert sum(map(trained, decoders.values())) >= 0.9 * len(decoders)
    assert sum(bool(passed(s, COLUMNS["Served"])) for s in decoders.values()) >= 0.7 * len(decoders)


@pytest.mark.parametrize("name", NAMED)
def test_well_known_classes_are_trained_and_served(results, name):
    stages = results.classes[f"{name}ForCausalLM"]
    assert trained(stages)
    assert passed(stages, COLUMNS["Served"])
