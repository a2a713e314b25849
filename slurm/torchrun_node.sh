#!/bin/bash
# The processes of one node under torchrun; srun starts this script once per node.
#
#   TUNESMITH_NODES, TUNESMITH_NODE_RANK, TUNESMITH_PROCESSES    number of nodes, rank of this node, processes per node
#   TUNESMITH_ADDRESS, TUNESMITH_PORT                            rendezvous address
#   TUNESMITH_JOIN_S                                             rendezvous timeout in seconds
#   TUNESMITH_PYTHON, TUNESMITH_SCRIPTS, TUNESMITH_RUN_DIR, TUNESMITH_ATTEMPT
set -u

# srun forwards USR2 to every process of the step. It is meant for the workers, which handle it; torchrun and this shell
# must ignore it.
trap '' USR2

exec "$TUNESMITH_PYTHON" -P -m torch.distributed.run \
    --nnodes="$TUNESMITH_NODES" --node-rank="$TUNESMITH_NODE_RANK" --nproc-per-node="$TUNESMITH_PROCESSES" \
    --rdzv-backend=static --master-addr="$TUNESMITH_ADDRESS" --master-port="$TUNESMITH_PORT" \
    --rdzv-conf="timeout=$TUNESMITH_JOIN_S" --max-restarts=0 \
    --no-python bash "$TUNESMITH_SCRIPTS/worker.sh"
