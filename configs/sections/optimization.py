"""The section optimization: batches, learning rate and loss terms."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tunesmith.configs.sections.section import Fraction, Section


class RouterLoss(Section):
    """The load-balancing loss of mixture-of-experts models, as transformers defines it."""

    coefficient: NonNegativeFloat | None = None
    """Its weight in the loss. Null: the model configuration's router_aux_loss_coef, or 0. A weight above 0 is an error
    for models without experts, such as all those of the tasks classification and seq2seq."""
    scope: Literal["micro_batch", "global"] = "micro_batch"
    """Which tokens the share of each expert is computed from: those of a micro-batch on all ranks, or of the whole
    optimizer step. global is the loss of one large batch, and costs one more forward pass without gradient."""


class Optimization(Section):
    """Optimizer, learning rate schedule, batch sizes and regularization."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """adamw: fp32 moments. adamw_8bit: 8-bit moments (arXiv:2110.02861). paged_adamw_8bit: 8-bit moments that can be
    paged to CPU memory."""
    learning_rate: NonNegativeFloat = 2.0e-4
    """Peak learning rate, reached after the warmup."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate decay after the warmup."""
    warmup_fraction: Fraction = 0.03
    """Fraction of all steps used for linear warmup."""
    min_learning_rate_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Final learning rate, as a fraction of learning_rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW) of matrices; norms and biases are not decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's coefficients of the running averages of the gradient and of its square."""
    eps: PositiveFloat = 1.0e-8
    """Added to AdamW's denominator for numerical stability."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Maximum gradient norm, for gradient clipping; null: no clipping."""
    global_batch_size: PositiveInt = 8
    """Sequences per optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: PositiveInt | None = None
    """Sequences per rank and forward pass. Null: chosen by the plan from the available memory. Halved if memory runs
    out."""
    epochs: PositiveInt = 1
    """Number of passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Maximum number of optimizer steps; the run may end within an epoch."""
    dropout: Fraction | None = None
    """Probability of the model's dropout (attention, residual); null: the model configuration's value."""
    neftune_alpha: PositiveFloat | None = None
    """NEFTune noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914), typically 5; null: none."""
    label_smoothing: Fraction = 0.0
    """Probability mass of the target that is spread over the vocabulary."""
    z_loss: NonNegativeFloat = 0.0
    """Coefficient of log(sum of exp(logits))^2, added to each token's loss in training to keep logits small (PaLM,
    arXiv:2204.02311: 1.0e-4). Causal tasks only; not part of the evaluation loss."""
    router_loss: RouterLoss = RouterLoss()
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass. Null: only if they do not fit in memory."""
    offload_activations: bool = False
    """Keep what the backward pass needs in pinned CPU memory instead of GPU memory; with gradient_checkpointing, the
    inputs of blocks. Saves memory with long rows, and costs the time of the copies."""
    max_skipped_steps: NonNegativeInt = 3
    """Consecutive steps with a non-finite gradient that are skipped before the run fails."""
