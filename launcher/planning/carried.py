"""What the plan says of a multimodal checkpoint."""

from tunesmith.configs.plan import Choice, ModelFacts
from tunesmith.report.wording import plural


def carried_choice(model: ModelFacts) -> list[Choice]:
    """The tensors of a multimodal checkpoint that are not trained; empty for other models."""
    if model.carried is None:
        return []
    modules = ", ".join(model.carried.modules) or "none"
    reason = (
        f"{model.carried.class_name} is multimodal: its text model is trained; {modules}: not loaded, merged and full "
        "exports carry them through unchanged"
    )
    value = plural(model.carried.num_tensors, "tensor")
    return [Choice(key="carried through", value=value, reason=reason, num_bytes=model.carried.num_bytes)]
