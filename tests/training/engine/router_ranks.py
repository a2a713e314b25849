"""One rank of the router-loss tests: `python router_ranks.py DIRECTORY NAME`. Not a test itself.

Trains the first batch for every scope, micro-batch size and engine, and writes what it measured to
DIRECTORY/<NAME>.json; gradients to DIRECTORY/<NAME>-<case>.safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tunesmith.configs.deepspeed import Numbers, deepspeed_config
from tunesmith.configs.plan import ParallelismFacts
from tunesmith.configs.sections.method import Full, Lora, QLora
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import recompute_activations
from tunesmith.training.distributed.ranks import join_ranks, leave_ranks, own_rank
from tunesmith.training.engine.plain import PlainEngine

GLOBAL_BATCH = 8
COEFFICIENT = 0.5
METHODS = {
    "full": Full(kind="full"),
    "lora": Lora(kind="lora", lora_rank=3),
    "qlora": QLora(kind="qlora", lora_rank=3),
}


def loader_of(directory: Path, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> Loader:
    index = TokenIndex.open(directory / "index")
    return Loader(
        index,
        seed=5,
        epochs=4,
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
    )


def optimization(scope: str) -> Optimization:
    return Optimization.model_validate({
        "learning_rate": 1e-2, "router_loss": {"coefficient": COEFFICIENT, "scope": scope},
    })  # fmt: skip


def plain_engine(directory: Path, scope: str, ranks, *, recompute: bool = False) -> PlainEngine:
    model = stream_model(directory / "model", dtype=torch.float32, attention="tunesmith_packed")
    if recompute:
        recompute_activations(model)
    apply_method(model, Full(kind="full"))
    return PlainEngine(CausalLoss(model), trained_parameters(model), optimization(scope), ranks, device="cpu")


def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    ranks = own_rank() if own_rank().world_size == 1 else join_ranks("cpu")
    results = {}
    for scope in ("micro_batch", "global"):
        for accumulation in (1, 2, 4):
            engine = plain_engine(directory, scope, ranks, recompute=accumulation == 2)
            size = GLOBAL_BATCH // accumulation // ranks.world_size
            sums = engine.train_batch(loader_of(directory, size, ranks.rank, ranks.world_size).step_batch(1))
            assert sums.routing is not None
            case = f"{scope}-{accumulation}"
            results[case] = [sums.routing.router_loss, sums.routing.expert_load, sums.routing.router_entropy]
            if ranks.is_first:
                gradients = {key: weight.grad for key, weight in engine.parameters.items() if weight.grad is not None}
                save_file(gradients, directory / f"{name}-{case}.safetensors")
    results["plain-qlora"] = trained_norms(directory, ranks, "qlora", stage=0)
    if ranks.world_size > 1:
        results["zero-qlora"] = trained_norms(directory, ranks, "qlora", stage=3)
        for method in ("full", "lora"):
            results[f"zero-{method}"] = trained_norms(directory, ranks, method, stage=3)
            results[f"plain-{method}"] = trained_norms(directory, ranks, method, stage=0)
    if ranks.is_first:
        (directory / f"{name}.json").write_text(json.dumps(results))
    leave_ranks()


def trained_norms(directory: Path, ranks, method: str, stage: int) -> list[float]:
    """Losses and gradient norms of three steps, plain or with sharded weights."""
    from tunesmith.training.engine.deepspeed import DeepSpeedEngine
    from tunesmith.training.engine.zero_loading import sharder

    place, options = None, optimization("micro_batch")
    parallelism = ParallelismFacts()
    if stage == 3:
        parallelism = zero_facts(options, trains_base=method == "full")
        assert parallelism.deepspeed is not None
        place = sharder(parallelism.deepspeed, "cpu", ranks)
    model = stream_model(
        directory / "model", dtype=torch.float32, attention="tunesmith_packed", place=place, nf4=method == "qlora"
    )
    model = apply_method(model, METHODS[method], seed=3)
    loss = CausalLoss(model)
    arguments = loss, trained_parameters(model), options, ranks
    if stage == 3:
        engine = DeepSpeedEngine(*arguments, device="cpu", parallelism=parallelism)
    else:
        engine = PlainEngine(*arguments, device="cpu")
    # Experts in 4 bits are also compared over numbers of ranks: the router loss then needs one micro-batch per step.
    size = GLOBAL_BATCH // ranks.world_size if method == "qlora" else 3
    loader, values = loader_of(directory, size, ranks.rank, ranks.world_size), []
    for step in (1, 2, 3):
        sums = engine.train_batch(loader.step_batch(step))
        assert sums.routing is not None
        values += [sums.loss_sum / sums.num_targets, engine.optim_step(1e-2)[0], sums.routing.router_loss]
    engine.close()
    return values


def zero_facts(options: Optimization, *, trains_base: bool) -> ParallelismFacts:
    """ZeRO-3 that shards small tensors, too."""
    user = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    facts = ParallelismFacts(zero_stage=3)
    config = deepspeed_config(facts, options, Numbers(3, 2, 30_000, "fp32", trains_base, "cpu"), user=user)
    return facts.model_copy(update={"deepspeed": config})


if __name__ == "__main__":
    main()
