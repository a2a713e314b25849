#!/bin/bash
# Sourced by job.sh: one Ray for this job alone. Every node's is held by an srun of its own, which ends with the job;
# `ray stop` would end other jobs' as well. Gives RAY_ADDRESS and the pids in `ray_steps`.
# Uses: say, fail, stop_ray; scratch, run, TUNESMITH_ADDRESS, TUNESMITH_PORT, TUNESMITH_GPUS, TUNESMITH_JOIN_S.

# Only who can read this file may speak to this Ray.
# shellcheck disable=SC2154  # run, number and scratch are job.sh's
token=$run/jobs/ray-$number.token
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_ADDRESS=$TUNESMITH_ADDRESS:$TUNESMITH_PORT
trap 'rm -f "$token"' EXIT

# start_ray NODE_RANK NODE
start_ray() {
    TUNESMITH_NODE_RANK=$1 srun --overlap --nodes=1 --ntasks=1 --nodelist="$2" --input=none \
        bash "$TUNESMITH_SCRIPTS/ray_node.sh" \
        >>"$(printf '%s/logs/job-%s-life-%03d-ray-%04d.log' "$run" "$number" "$TUNESMITH_LIFE" "$1")" 2>&1 &
    ray_steps+=("$!")
}

# lives PID: whether a node's srun is still there.
lives() { kill -0 "$1" 2>/dev/null; }

say "starting Ray on $SLURM_JOB_NODELIST at $RAY_ADDRESS"
rank=0
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    start_ray "$rank" "$node"
    if [ "$rank" = 0 ]; then # the others need it to be there
        deadline=$(($(date +%s) + TUNESMITH_JOIN_S))
        until taken "$TUNESMITH_PORT"; do
            if ! lives "${ray_steps[0]}"; then
                stop_ray
                fail "Ray did not start on $node: see logs/job-$number-life-*-ray-0000.log"
            elif [ "$(date +%s)" -gt "$deadline" ]; then
                stop_ray
                fail "Ray did not listen on $RAY_ADDRESS within $TUNESMITH_JOIN_S s"
            fi
            sleep 0.5
        done
    fi
    rank=$((rank + 1))
done

if ! "$TUNESMITH_PYTHON" -P -m tunesmith.launcher.ray.nodes "$SLURM_JOB_NUM_NODES" "$TUNESMITH_JOIN_S"; then
    stop_ray
    fail "not every node joined Ray within $TUNESMITH_JOIN_S s: see logs/job-$number-life-*-ray-*.log"
fi
