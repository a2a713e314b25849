"""Recipes, models and data as facts, without files: what the planner reckons with."""

from collections.abc import Callable

import pytest

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.plan import DataFacts, ModelFacts, SplitFacts
from tunesmith.configs.recipe import Recipe

RECIPE = """\
name: support-bot
model: {base: models/some}
task: chat
method: {kind: lora, lora_rank: 16, lora_alpha: 32, target_modules: all-linear}
data: {train: [support.jsonl], validation: 0.1, max_seq_len: 512, packing: false}
optimization: {global_batch_size: 8, epochs: 1, warmup_fraction: 0.03}
seed: 7
"""


@pytest.fixture(scope="session")
def a_recipe() -> Callable[..., Recipe]:
    """a_recipe("optimization.epochs=2", ...) -> Recipe"""
    return lambda *overrides: load_recipe_text(RECIPE, overrides=overrides)


@pytest.fixture(scope="session")
def a_model() -> Callable[..., ModelFacts]:
    """SmolLM2-135M's shape, with anything changed."""

    def make(**changes) -> ModelFacts:
        facts = {
            "directory": "/models/some",
            "source": "models/some",
            "fingerprint": "m" * 64,
            "model_type": "llama",
            "num_layers": 30,
            "hidden_size": 576,
            "vocab_size": 49152,
            "num_params": 134_515_008,
            "num_trained_params": 4_884_480,
            "tied_embeddings": True,
        }
        return ModelFacts.model_validate({**facts, **changes})

    return make


@pytest.fixture(scope="session")
def some_data() -> Callable[..., DataFacts]:
    """some_data(num_samples, longest_tokens=..., mean_tokens=..., validation=...) -> DataFacts"""

    def split(num_samples: int, longest: int, mean: int) -> SplitFacts:
        return SplitFacts(
            index="/cache/index/x/train",
            num_rows=num_samples,
            num_samples=num_samples,
            num_tokens=num_samples * mean,
            supervised_tokens=num_samples * mean // 2,
            longest_tokens=longest,
        )

    def make(
        num_samples: int = 100, longest_tokens: int = 512, mean_tokens: int = 500, validation: int = 10
    ) -> DataFacts:
        return DataFacts(
            fingerprint="d" * 64,
            train=split(num_samples, longest_tokens, mean_tokens),
            validation=split(validation, longest_tokens, mean_tokens) if validation else None,
            num_rejected=0,
            num_dropped=0,
            num_truncated=0,
            num_duplicates=0,
        )

    return make
