"""What the sections of the recipe have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A section of the recipe: unknown keys are errors, and values are not converted between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def uses_reference(self) -> bool:
        """Whether the loss that a task's options select uses a reference model."""
        return True
