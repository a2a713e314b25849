"""An encoder that de-identifies rows before encoding them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunesmith.configs.sections.data import Deidentify
from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.outcomes import Prepared
from tunesmith.data.refusal import keys_of
from tunesmith.data.rows.shapes.columns import renamed, with_parsed_cells


class DeidentifyingEncoder:
    """Wrapper of an encoder that only passes de-identified rows to it."""

    def __init__(self, inner: RowEncoder, settings: Deidentify):
        self.inner, self.settings = inner, settings
        self.tokenizer, self.spec = inner.tokenizer, inner.spec

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows like the inner encoder, and set `replaced`."""
        columns = self.spec.columns.renamed() if self.spec.columns is not None else {}
        cleaned = [deidentified(with_parsed_cells(value, columns), self.settings) for value in values]
        results = self.inner.encode([value for value, _ in cleaned])
        return [
            replace(
                result,
                replaced=dict(counts),
                reason=self._deidentified(result.reason, value),
                remedy=self._deidentified(result.remedy, value),
            )
            for result, (value, counts) in zip(results, cleaned, strict=True)
        ]

    def _deidentified(self, text: str, value: Any) -> str:
        """De-identify a message about a row, and replace the list of its keys by their number."""
        if isinstance(value, dict):
            shown = [value]
            if self.spec.columns is not None and isinstance(row := renamed(value, self.spec.columns.renamed()), dict):
                shown.append(row)
            for keys in map(keys_of, shown):
                text = text.replace(keys, f"it has {len(value)} keys, withheld (data.deidentify)")
        return deidentified(text, self.settings)[0] if text else ""
