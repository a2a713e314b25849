"""The section method: which weights are trained."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tunesmith.configs.sections.section import Fraction, Section


class Full(Section):
    """Every weight is trained."""

    kind: Literal["full"]


class LastLayers(Section):
    """The last `num_layers` blocks, the final norm and the head are trained; all earlier layers are frozen."""

    kind: Literal["last_layers"]
    num_layers: PositiveInt = 2
    """Number of blocks to train, counted from the end."""
    train_head: bool | None = None
    """Train the output head. Null: yes, unless the head is tied to the input embedding."""


class Lora(Section):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685), through peft."""

    kind: Literal["lora"]
    lora_rank: PositiveInt = 16
    """Rank r of the two adapter matrices."""
    lora_alpha: PositiveFloat = 32
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: Fraction = 0.0
    """Dropout probability of the adapter's input."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers and embeddings that get an adapter, or ends of their paths, as in peft; all-linear:
    every linear layer except the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilized LoRA, arXiv:2312.03732)."""
    use_dora: bool = False
    """Train magnitude and direction of the weights separately (DoRA, arXiv:2402.09353)."""
    start_from: str | None = None
    """Exported adapter of an earlier run to continue training from: a directory, with the same base, rank, scaling and
    modules. Null: a new adapter. Paths: relative to the recipe, then to the working directory."""


class QLora(Lora):
    """LoRA on frozen 4-bit weights, NF4 (Dettmers et al. 2023, arXiv:2305.14314), through bitsandbytes."""

    kind: Literal["qlora"]  # pyright: ignore[reportIncompatibleVariableOverride]
    double_quantization: bool = True
    """Quantize the scales of the 4-bit blocks to 8 bits: 4.13 bits per weight instead of 4.5."""


Method = Annotated[Full | LastLayers | Lora | QLora, Field(discriminator="kind")]
