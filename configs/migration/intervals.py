"""Convert when a run saves and evaluates."""

from tunesmith.configs.migration.draft import Draft


def convert_saving(draft: Draft, default_steps: int | None) -> None:
    """Convert save_strategy, save_steps and save_total_limit. default_steps: save_steps if the file does not set it;
    None: once per epoch."""
    strategy = str(draft.source.get("save_strategy", "steps" if default_steps else "epoch"))
    if draft.source.has("save_steps") and not draft.source.has("save_strategy"):
        strategy = "steps"
    steps = draft.source.get("save_steps", default_steps)
    if strategy == "steps":
        if isinstance(steps, float) and 0 < steps < 1:
            draft.drop("save_steps", _fraction("checkpoint.every_steps", steps))
        elif steps is not None:
            draft.set("checkpoint.every_steps", steps, "save_steps", "save_strategy")
    elif strategy == "epoch":
        draft.set("checkpoint.every_steps", None, "save_strategy", note="once per epoch")
    elif strategy in ("no", "best"):
        draft.drop(
            "save_strategy", f"{strategy}: checkpoints are always written, at least once per epoch; the best is kept"
        )
    else:
        draft.choose("save_strategy", strategy, ("no", "steps", "epoch", "best"), "its values are")
    if draft.source.get("save_total_limit"):
        draft.copy("save_total_limit", "checkpoint.keep_last")


def convert_evaluation(draft: Draft, *, has_validation: bool) -> None:
    """Convert eval_strategy and eval_steps. has_validation: whether the recipe has validation rows."""
    key = draft.source.first("eval_strategy", "evaluation_strategy")
    steps = draft.source.get("eval_steps")
    strategy = str(draft.source.get(key, "steps" if steps else "no"))
    if strategy == "steps":
        steps = draft.source.get("eval_steps", draft.source.get("logging_steps", 500))
        if not has_validation:
            draft.drop(key, "there are no validation rows")
        elif isinstance(steps, float) and 0 < steps < 1:
            draft.drop("eval_steps", _fraction("evaluation.every_steps", steps))
        else:
            draft.set("evaluation.every_steps", steps, "eval_steps", key)
    elif strategy == "epoch":
        draft.drop(key, "set evaluation.every_steps to the steps of an epoch that `tunesmith plan` shows")
    elif strategy in ("no", "False"):
        draft.set("evaluation.every_steps", None, key, note="before the first and after the last step only")
    else:
        draft.choose(key, strategy, ("no", "steps", "epoch"), "its values are")


def _fraction(recipe_key: str, fraction: float) -> str:
    return f"a fraction of all steps: set {recipe_key} to {fraction} times the steps that `tunesmith plan` shows"
