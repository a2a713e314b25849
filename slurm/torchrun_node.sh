#!/bin/bash
# One node's share of a run under torchrun; srun starts it once on each node.
#
#   TUNESMITH_NODES, TUNESMITH_NODE_RANK, TUNESMITH_PROCESSES    nodes, which of them, processes on each
#   TUNESMITH_ADDRESS, TUNESMITH_PORT                            where the nodes meet
#   TUNESMITH_JOIN_S                                             seconds in which all must have come
#   TUNESMITH_PYTHON, TUNESMITH_SCRIPTS, TUNESMITH_RUN_DIR, TUNESMITH_ATTEMPT
set -u

# srun passes USR2 on to every process of the step. It is meant for the workers, which listen to it by themselves:
# torchrun and this shell must not die of it.
trap '' USR2

exec "$TUNESMITH_PYTHON" -P -m torch.distributed.run \
    --nnodes="$TUNESMITH_NODES" --node-rank="$TUNESMITH_NODE_RANK" --nproc-per-node="$TUNESMITH_PROCESSES" \
    --rdzv-backend=static --master-addr="$TUNESMITH_ADDRESS" --master-port="$TUNESMITH_PORT" \
    --rdzv-conf="timeout=$TUNESMITH_JOIN_S" --max-restarts=0 \
    --no-python bash "$TUNESMITH_SCRIPTS/worker.sh"
