"""The data loader of a run, from its plan."""

from tunesmith.configs.plan import Plan
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.order import order_of
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.index.unrelated import ReferenceScores
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.training.distributed.ranks import Ranks


def loader_of(plan: Plan, index: TokenIndex, ranks: Ranks, reference: ReferenceScores | None = None) -> Loader:
    """Return the loader of this rank. index: of the training rows. reference: their reference scores, for tasks that
    need them."""
    task, labels = plan.recipe.task_facts, labels_of(plan)
    loader = Loader(
        index,
        seed=plan.recipe.seed,
        epochs=plan.recipe.optimization.epochs,
        global_batch_size=plan.recipe.optimization.global_batch_size,
        micro_batch_size=plan.batch.micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_steps=plan.recipe.optimization.max_steps,
        counts_samples=task.counts_samples,
        reference=reference,
        unrelated=task.needs_unrelated,
        filler_lengths=[2, 2] if task.is_paired else [1 + (labels.num_targets if labels else 1)],
    )
    loader = loader.with_order(order_of(plan.recipe.seed, plan.data))
    return loader.with_passes(plan.batch.micro_batch_size, plan.batch.passes_per_sequence)
