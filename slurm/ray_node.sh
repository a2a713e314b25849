#!/bin/bash
# Ray of one node, in the foreground until terminated. It uses the job's port block, so that jobs do not collide.
set -u
mkdir -p "$TUNESMITH_JOB_SCRATCH" || exit 1
export RAY_USAGE_STATS_ENABLED=0
own=$((TUNESMITH_PORT + 2 + 2 * (TUNESMITH_NODE_RANK % 8)))
options=(--block --num-cpus="${SLURM_CPUS_ON_NODE:-1}" --num-gpus="$TUNESMITH_GPUS" --min-worker-port=0 --max-worker-port=0
    --dashboard-agent-listen-port="$own" --disable-usage-stats)
if [ "$TUNESMITH_NODE_RANK" = 0 ]; then
    exec "$TUNESMITH_PYTHON" -P -m ray.scripts.scripts start --head --port="$TUNESMITH_PORT" \
        --node-ip-address="$TUNESMITH_ADDRESS" --ray-client-server-port="$((TUNESMITH_PORT + 1))" \
        --include-dashboard=false --temp-dir="$TUNESMITH_JOB_SCRATCH" "${options[@]}"
fi
if [ -n "${TUNESMITH_INTERFACE:-}" ]; then
    own=$(ip -o -4 addr show dev "$TUNESMITH_INTERFACE" | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | head -n 1)
    options+=(--node-ip-address="$own")
fi
exec "$TUNESMITH_PYTHON" -P -m ray.scripts.scripts start --address="$RAY_ADDRESS" "${options[@]}"
