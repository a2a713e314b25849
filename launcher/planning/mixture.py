"""The plan's choices for a mixture of data sets: samples per epoch of each, with the reason."""

from tunesmith.configs.plan import Choice, DataFacts, DataSetFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Mixing
from tunesmith.report.wording import percent, plural


def sample_noun(recipe: Recipe) -> str:
    """What the samples of a batch are."""
    return "packed sequence" if recipe.packs else "row"


def mixture_choices(recipe: Recipe, data: DataFacts) -> list[Choice]:
    """Return the samples of an epoch, and of each data set in it; nothing without a mixture."""
    if data.epoch_samples is None:
        return []
    mixing = recipe.data.mixing or Mixing()
    rule = "data.mixing" if isinstance(mixing.epoch_samples, int) else mixing.epoch_samples
    unit = f"{sample_noun(recipe)}s"
    return [
        Choice(key="epoch_samples", value=data.epoch_samples, reason=f"{rule}; shares hold in {unit}"),
        *(_choice(recipe, data, facts) for facts in data.datasets if facts.num_samples),
    ]


def _choice(recipe: Recipe, data: DataFacts, facts: DataSetFacts) -> Choice:
    mixing = recipe.data.mixing or Mixing()
    weight = next(each.weight for each in recipe.data.training_sets if each.label == facts.name)
    why = "proportional to its size" if mixing.temperature in (None, 1) else f"temperature {mixing.temperature:g}"
    if weight is not None:
        why = f"weight {weight:g}"
    share = percent(facts.samples_per_epoch / (data.epoch_samples or 1))
    passes = f"{facts.samples_per_epoch / facts.num_samples:.3g}"
    used = f"{passes} x its {plural(facts.num_samples, sample_noun(recipe))}"
    used += f" of {plural(facts.num_rows, 'row')}" if recipe.packs else ""
    return Choice(
        key=f"dataset {facts.name}", value=facts.samples_per_epoch, reason=f"{share} of an epoch, {why}: {used}"
    )
