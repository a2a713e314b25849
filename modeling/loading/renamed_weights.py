"""The names of a model's weights in its files: transformers renames some on loading, and stacks those of experts."""

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


class Source(NamedTuple):
    """Where a weight comes from. keys: names in the files, each with the pattern of the converter that it matches.
    converter: builds the weight from their tensors; None: the only one is the weight."""

    keys: list[tuple[str, str]]
    converter: Any


class RenamedWeights:
    """Which tensors of the files a weight of the model is built from, where the names differ. keys: of the files.
    mapping: transformers' `key_mapping`, which is applied first."""

    def __init__(self, model: PreTrainedModel, keys: list[str], mapping: dict[str, str] | None = None):
        self._model = model
        conversions = get_model_conversion_mapping(model, mapping)
        renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        self.sources: dict[str, Source] = {}
        for key in sorted(keys, key=_natural) if conversions else ():
            name, pattern = rename_source_key(key, renamings, converters)
            if pattern is not None:
                self.sources.setdefault(name, Source([], by_pattern[pattern])).keys.append((key, pattern))
            elif name != key:
                self.sources[name] = Source([(key, "")], None)

    def build(self, name: str, tensors: list[torch.Tensor]) -> torch.Tensor | None:
        """Return a weight from the tensors of its source, in the order of its keys; None if they give other weights."""
        source = self.sources[name]
        if source.converter is None:
            return tensors[0]
        converter = deepcopy(source.converter)
        for (key, pattern), tensor in zip(source.keys, tensors, strict=True):
            converter.add_tensor(name, key, pattern, tensor)
        built = converter.convert(name, model=self._model, config=self._model.config).get(name)
        return built[0] if isinstance(built, list) else built


def _natural(key: str) -> list[tuple[int, str]]:
    """Sort key by which expert 10 comes after expert 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]
