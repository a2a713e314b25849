"""The process of one rank, from plan to export: `python -m tunesmith.training.worker RUN_DIR --attempt N`.

Reads plan.json and the usual RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (not needed for a single process).
Exit codes: 0 done, 1 fault, 2 bad input, 75 preempted with the state saved.
"""

import argparse
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.errors import ExitCode, InputError, RunFault, TunesmithError
from tunesmith.freed_memory import keep_no_large_blocks
from tunesmith.large_imports import garbage_collection_paused
from tunesmith.modeling.cuda import set_up_cuda
from tunesmith.os_errors import os_fault
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.fence import RunLost, Superseded, begin_attempt, loss_of
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.resume_point import resume_point
from tunesmith.training.distributed.fatal import this_rank
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.network import set_interfaces
from tunesmith.training.distributed.preflight import check_ranks
from tunesmith.training.distributed.ranks import Ranks, join_ranks, leave_ranks, own_rank
from tunesmith.training.distributed.rendezvous import NCCL_START_S
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.distributed.watchdog import Watchdog
from tunesmith.training.journal import Journal


def main() -> int:
    """Run the worker and return its exit code."""
    parser = argparse.ArgumentParser(description="One rank of a Tunesmith run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, default=1)
    arguments = parser.parse_args()

    interruption = Interruption()
    interruption.install_handlers()
    run, attempt = RunDir(arguments.run_dir), arguments.attempt
    try:
        run, plan, ranks = start(run, attempt)
    except TunesmithError as error:
        if own_rank().is_first or not isinstance(error, InputError):  # rank 0 records errors that it has broadcast
            record_end(run, attempt, error)
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    journal = Journal(run, ranks, attempt=attempt, total_steps=plan.batch.total_steps)
    try:
        return _run(run, plan, ranks, journal, interruption, attempt)
    finally:
        leave_ranks()


def start(run: RunDir, attempt: int) -> tuple[RunDir, Plan, Ranks]:
    """Check the other ranks, if any, then start the process group, all within a time limit. Return the run with its ID.

    Raises InputError or RunFault naming rank and host.
    """
    ranks = own_rank()
    if ranks.is_first and run.exists:
        run = begin_attempt(run, attempt)
    if ranks.world_size == 1:
        plan = read_plan(run.plan)
        _set_up_torch(plan)
        return run, plan, ranks
    rendezvous = check_ranks(run, ranks, attempt)
    plan = read_plan(run.plan)
    _set_up_torch(plan)
    rendezvous.set_waiting_for("the first collective of all ranks to complete")
    if plan.compute.device == "cuda":
        rendezvous.allow(NCCL_START_S)
    set_interfaces(rendezvous.address)
    try:
        ranks = join_ranks(plan.compute.device, rendezvous.store, stage_timeout_s=plan.recipe.stage_timeout_s)
    except (RuntimeError, ValueError) as error:  # what torch raises when the network fails
        raise RunFault(
            f"the first collective failed at {this_rank(ranks.rank)}: {str(error).splitlines()[0]}",
            where=f"MASTER_ADDR={rendezvous.address}, MASTER_PORT={rendezvous.port}",
            remedy="check that the hosts can reach each other on every port, and that GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME name a network that they share",
        ) from error
    rendezvous.complete()
    return replace(run, run_id=ranks.broadcast(run.run_id)), plan, ranks


def _run(run: RunDir, plan: Plan, ranks: Ranks, journal: Journal, interruption: Interruption, attempt: int) -> ExitCode:
    """Run the rank and turn the outcome into events and an exit code. A superseded attempt writes only its log."""
    try:
        return _run_and_report(run, plan, ranks, journal, interruption, attempt)
    except (Superseded, RunLost) as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


def _run_and_report(
    run: RunDir, plan: Plan, ranks: Ranks, journal: Journal, interruption: Interruption, attempt: int
) -> ExitCode:
    try:
        recipe = plan.recipe
        watchdog = Watchdog(
            run, ranks, attempt, hang_timeout_s=recipe.hang_timeout_s, stage_timeout_s=recipe.stage_timeout_s
        )
        with watchdog.watching():
            # Imported late: transformers and peft take seconds, and mismatched ranks exit before they are needed.
            with garbage_collection_paused():
                from tunesmith.training.run_rank import run_rank

            outcome = run_rank(run, plan, ranks, journal, interruption, watchdog, attempt)
    except Superseded:
        raise
    except TunesmithError as error:
        print(error, file=sys.stderr, flush=True)
        journal.fail(error)  # on any rank, before its connections close and the other ranks fail for that reason
        return error.exit_code
    except Exception as error:
        if (lost := loss_of(run)) is not None:  # the error is a consequence
            print(lost, file=sys.stderr, flush=True)
            return lost.exit_code
        traceback.print_exc()
        if ranks.is_first or os_fault(error, run.root) is not None:  # the other ranks only lose the connection to this
            journal.fail(_fault(error, run, ranks.rank))
        return ExitCode.FAULT
    code = ExitCode.PREEMPTED if outcome == "preempted" else ExitCode.DONE
    with watchdog.stage(Stage.FINISH, journal.status.step):
        journal.end(outcome, code)
        leave_ranks()
    watchdog.close()  # not after a failure: a rank that still waits for this one reports that it has exited
    return code


def _fault(error: Exception, run: RunDir, rank: int) -> RunFault:
    """Return what is recorded of an exception: what the operating system says, otherwise a bug with its traceback."""
    if (fault := os_fault(error, run.root)) is not None:
        return RunFault(fault.what, where=f"rank {rank}, {fault.where}", remedy=fault.remedy)
    if "does not have a deterministic implementation" in str(error):
        return RunFault(
            str(error).split(", but you set", maxsplit=1)[0],
            where=f"rank {rank}, key deterministic",
            remedy="start the run with `--set deterministic=off`: a resumed run then agrees to rounding",
        )
    remedy = (
        f"see the traceback in the log of this attempt (logs/); resumed, the run continues from {resume_point(run)}"
    )
    return RunFault(f"{type(error).__name__}: {error}", where=f"rank {rank}", remedy=remedy)


def _set_up_torch(plan: Plan) -> None:
    """Set threads and determinism as in the plan; where memory matters more than time, no free memory is kept."""
    torch.set_num_threads(plan.compute.threads_per_rank)
    if plan.compute.gradient_checkpointing and plan.compute.device == "cpu":
        keep_no_large_blocks()
    mode = plan.compute.deterministic
    torch.use_deterministic_algorithms(mode != "off", warn_only=mode == "warn")
    # Deterministic mode also fills uninitialized buffers, to expose reads of them: that costs 5% of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if plan.compute.device == "cuda":
        set_up_cuda(int(os.environ.get("LOCAL_RANK", "0")))


if __name__ == "__main__":
    sys.exit(main())
