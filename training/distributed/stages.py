"""The stages of a rank. A rank is in one at any time, and each has a time limit (training.distributed.watchdog)."""

from enum import StrEnum


class Stage(StrEnum):
    """What a rank is doing, in the order of a run."""

    START = "start"
    LOADING = "loading"
    REFERENCE = "reference"
    RESUME = "resume"
    TRAINING = "training"
    DATA = "data"
    FORWARD = "forward"
    UPDATE = "update"
    VALIDATION = "validation"
    RETAINED = "retained"
    FEW_SHOT = "few_shot"
    ANSWERS = "answers"
    CHECKPOINT = "checkpoint"
    DELIVERY = "delivery"
    BEST = "best"
    EXPORT = "export"
    FINISH = "finish"

    @property
    def description(self) -> str:
        """What the rank is doing, for messages: `rank 1 hangs <description>`."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Stage.START: "while starting",
    Stage.LOADING: "loading the model",
    Stage.REFERENCE: "computing reference log-probabilities",
    Stage.RESUME: "resuming from a checkpoint",
    Stage.TRAINING: "between steps",
    Stage.DATA: "reading data",
    Stage.FORWARD: "in forward and backward",
    Stage.UPDATE: "in the optimizer step",
    Stage.VALIDATION: "scoring the validation rows",
    Stage.RETAINED: "scoring the rows of evaluation.retain",
    Stage.FEW_SHOT: "scoring the few-shot baseline",
    Stage.ANSWERS: "generating sample answers",
    Stage.CHECKPOINT: "saving a checkpoint",
    Stage.DELIVERY: "waiting for the checkpoint writer and the mirror",
    Stage.BEST: "loading the best checkpoint",
    Stage.EXPORT: "exporting the model",
    Stage.FINISH: "while finishing",
}

ORDER = {stage: number for number, stage in enumerate(Stage)}
"""Position of each stage: of two ranks in the same step, the one in the earlier stage is behind."""

COARSE = frozenset(
    {
        *(Stage.START, Stage.LOADING, Stage.REFERENCE, Stage.RESUME),
        *(Stage.CHECKPOINT, Stage.DELIVERY, Stage.BEST, Stage.EXPORT, Stage.FINISH),
    }
)
"""Stages with long calls that report no progress: an import, a library that reads a whole model, the compilation of a
kernel or extension, the lengths of all training rows, the flush of a file."""

STEP = frozenset({Stage.DATA, Stage.FORWARD, Stage.UPDATE})
"""Stages of a step; only their first execution compiles."""
