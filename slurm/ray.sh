#!/bin/bash
# Sourced by job.sh: starts a Ray cluster for this job only. Each node's Ray runs in a separate srun, which ends with
# the job; `ray stop` would also end the Rays of other jobs. Sets RAY_ADDRESS and the pids in `ray_steps`.
# Uses: say, fail, stop_ray; scratch, run, TUNESMITH_ADDRESS, TUNESMITH_PORT, TUNESMITH_GPUS, TUNESMITH_JOIN_S.

# Only processes that can read this file can connect to this Ray.
# shellcheck disable=SC2154  # run, number and scratch are set by job.sh
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

# is_running PID: whether the srun of a node is running.
is_running() { kill -0 "$1" 2>/dev/null; }

say "starting Ray on $SLURM_JOB_NODELIST at $RAY_ADDRESS"
rank=0
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    start_ray "$rank" "$node"
    if [ "$rank" = 0 ]; then # the other nodes connect to it
        deadline=$(($(date +%s) + TUNESMITH_JOIN_S))
        until taken "$TUNESMITH_PORT"; do
            if ! is_running "${ray_steps[0]}"; then
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
