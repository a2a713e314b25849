"""An encoder that never sees an original: rows are de-identified before anything else."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunesmith.configs.recipe import Deidentify
from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.outcomes import Prepared
from tunesmith.data.refusal import keys_of


class DeidentifyingEncoder:
    """An encoder that never sees an original."""

    def __init__(self, inner: RowEncoder, settings: Deidentify):
        self.inner, self.settings = inner, settings
        self.tokenizer, self.spec = inner.tokenizer, inner.spec

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """As the inner encoder's, with `replaced` filled in."""
        cleaned = [deidentified(value, self.settings) for value in values]
        results = self.inner.encode([value for value, _ in cleaned])
        return [
            replace(
                result,
                replaced=dict(counts),
                reason=self._said(result.reason, value),
                remedy=self._said(result.remedy, value),
            )
            for result, (value, counts) in zip(results, cleaned, strict=True)
        ]

    def _said(self, text: str, value: Any) -> str:
        """What is told of a row: cleaned as the row is, and with the number of its keys in the place of their names."""
        if isinstance(value, dict):
            text = text.replace(keys_of(value), f"it has {len(value)} keys, withheld (data.deidentify)")
        return deidentified(text, self.settings)[0] if text else ""
