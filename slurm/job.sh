#!/bin/bash
# The body of every Tunesmith batch job. It is preceded by the #SBATCH lines and its input, as exported variables:
#
#   TUNESMITH_RUN_DIR      run directory on a file system shared by all nodes; for an array: its parent directory
#   TUNESMITH_STAGE        prepare | train | evaluate | export
#   TUNESMITH_LAUNCHER     ray | torchrun: how the processes of `train` are started
#   TUNESMITH_PYTHON       the Python interpreter, or a script that starts it in a container
#   TUNESMITH_SCRIPTS      directory of the other scripts
#   TUNESMITH_MAX_LIVES    maximum number of starts, including requeues
#   TUNESMITH_GPUS         GPUs per node
#   TUNESMITH_INTERFACE    network interface between the nodes; empty: the one that the node names resolve to
#   TUNESMITH_SCRATCH      local disk of each node; empty: $TMPDIR or /tmp
#   TUNESMITH_MODULES      modules to load, one per line
#
# Exit codes: 0 success, with a result file; 1 failure; 2 invalid input; 75 state saved, requeued; 143 state saved, not
# requeued.
set -u

say() { printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*"; }

# --- Run directory and number of the start ---------------------------------------------------------------------------

start=$((${SLURM_RESTART_COUNT:-0} + 1)) # SLURM_RESTART_COUNT is unset on the first start
run=$TUNESMITH_RUN_DIR
number=$SLURM_JOB_ID # the ID that Slurm displays: ARRAY_TASK for an array task, which also has a raw ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    run=$(printf '%s/%03d' "$TUNESMITH_RUN_DIR" "$SLURM_ARRAY_TASK_ID")
    number=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi
export TUNESMITH_RUN_DIR=$run TUNESMITH_LIFE=$start TUNESMITH_JOB_NUMBER=$number
mkdir -p "$run/logs" "$run/jobs" || exit 1
exec >>"$(printf '%s/logs/job-%s-life-%03d.log' "$run" "$number" "$start")" 2>&1
result=$run/jobs/$TUNESMITH_STAGE-$number.result
say "job $number, stage $TUNESMITH_STAGE, start $start (maximum $TUNESMITH_MAX_LIVES) on $SLURM_JOB_NODELIST"

job_python() { "$TUNESMITH_PYTHON" -P -m tunesmith.cli.batch_step "$run" --stage "$TUNESMITH_STAGE" "$@"; }

# fail WHAT: record the cause in the run directory and exit with 1.
fail() {
    say "error: $1"
    job_python --fault "$1" || true
    exit 1
}

# Since Slurm 22.05, srun no longer inherits --cpus-per-task from the job.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

while IFS= read -r module; do
    if [ -n "$module" ]; then
        say "module load $module"
        module load "$module" || fail "module load $module failed"
    fi
done <<<"${TUNESMITH_MODULES:-}"

# --- Stop requests ---------------------------------------------------------------------------------------------------
# Slurm sends USR2 before the time limit: save and requeue. TERM means scancel, a manual requeue or a preemption: save
# what can be saved in the remaining time and exit; the sender decides whether the job is requeued.

stop='' driver=''
# shellcheck disable=SC2317  # called by the traps
request_stop() {
    stop=$1
    if [ -n "$driver" ]; then
        kill -USR2 "$driver" 2>/dev/null || true
    fi
}
trap 'request_stop requeue' USR2
trap 'request_stop exit' TERM

# wait_for PID: return its exit code. A trapped signal interrupts `wait` while the process is still running.
wait_for() {
    local code
    while
        wait "$1"
        code=$?
        kill -0 "$1" 2>/dev/null
    do :; done
    return "$code"
}

# --- Requeueing ------------------------------------------------------------------------------------------------------

# requeue [NODES]: start this job again later, without these nodes. The call also terminates this job.
requeue() {
    trap '' TERM USR2
    if [ -z "${1:-}" ]; then
        scontrol requeue "$SLURM_JOB_ID" || fail "Slurm refused to requeue the job"
        exit 75
    fi
    scontrol requeuehold "$SLURM_JOB_ID" || fail "Slurm refused to requeue the job without $1"
    before=$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\) .*/\1/p')
    case $before in '' | '(null)') excluded=$1 ;; *) excluded=$before,$1 ;; esac
    scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$excluded"
    scontrol release "$SLURM_JOB_ID"
    exit 75
}

if [ "$start" -gt "$TUNESMITH_MAX_LIVES" ]; then
    fail "the job was started $((start - 1)) times and did not finish: max_lives in the cluster file is reached"
fi

# --- Node health -----------------------------------------------------------------------------------------------------

# Checked before the stage, and again after a failure: a failed node is no fault of the run, so the job is requeued.

leave_bad_nodes() {
    local health node why bad=''
    TUNESMITH_CLOCK=$(date +%s)
    export TUNESMITH_CLOCK
    health=$(timeout 90 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --input=none \
        bash "$TUNESMITH_SCRIPTS/node_health.sh")
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        if ! grep -qx "healthy $node" <<<"$health"; then
            why=$(sed -n "s/^unhealthy $node: //p" <<<"$health")
            say "node $node is unhealthy: ${why:-it did not respond}" | tee -a "$run/logs/bad-nodes.log"
            bad=${bad:+$bad,}$node
        fi
    done
    if [ -n "$bad" ]; then
        say "requeueing without $bad"
        requeue "$bad"
    fi
}
leave_bad_nodes

# --- Rendezvous ------------------------------------------------------------------------------------------------------
# This script runs on the first node, so its address is the rendezvous address. The port is derived from the job ID, so
# that jobs on the same nodes do not collide; each job has a block of 20 ports.

address=''
if [ -n "${TUNESMITH_INTERFACE:-}" ]; then
    address=$(ip -o -4 addr show dev "$TUNESMITH_INTERFACE" | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | head -n 1)
    export GLOO_SOCKET_IFNAME=$TUNESMITH_INTERFACE NCCL_SOCKET_IFNAME=$TUNESMITH_INTERFACE
else
    address=$(getent ahostsv4 "$(hostname)" | awk 'NR == 1 { print $1 }')
fi
if [ -z "$address" ]; then
    fail "node $(hostname) has no address${TUNESMITH_INTERFACE:+ on $TUNESMITH_INTERFACE}: set interface in the cluster file"
fi

# taken PORT: whether a process listens on it.
taken() { (exec 3<>"/dev/tcp/$address/$1") 2>/dev/null; }

block=$((SLURM_JOB_ID % 1000))
for _ in 1 2 3 4 5 6 7 8; do
    port=$((11000 + 20 * block))
    if ! taken "$port"; then
        break
    fi
    block=$(((block + 1) % 1000))
done
export TUNESMITH_ADDRESS=$address TUNESMITH_PORT=$port

scratch=${TUNESMITH_SCRATCH:-${TMPDIR:-/tmp}}/tunesmith-$SLURM_JOB_ID
export TUNESMITH_JOB_SCRATCH=$scratch

# --- Run the stage ---------------------------------------------------------------------------------------------------

ray_steps=()
stop_ray() {
    for step in "${ray_steps[@]}"; do
        kill -TERM "$step" 2>/dev/null || true # srun ends its step and the processes in it
    done
    for step in "${ray_steps[@]}"; do
        wait_for "$step" || true
    done
    if [ "${#ray_steps[@]}" -gt 0 ]; then
        ray_steps=()
        timeout 60 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --input=none rm -rf "$scratch"
    fi
}

if [ "$TUNESMITH_STAGE" = train ] && [ "$TUNESMITH_LAUNCHER" = ray ]; then
    # shellcheck source=slurm/ray.sh
    . "$TUNESMITH_SCRIPTS/ray.sh"
fi

rm -f "$result"
if [ -n "$stop" ]; then
    code=75
else
    # Not job_python: as a background job it would add a subshell, which would receive the signals instead.
    "$TUNESMITH_PYTHON" -P -m tunesmith.cli.batch_step "$run" --stage "$TUNESMITH_STAGE" &
    driver=$!
    if [ -n "$stop" ]; then # the signal arrived before the driver was started
        kill -USR2 "$driver" 2>/dev/null || true
    fi
    wait_for "$driver"
    code=$?
    driver=''
fi
stop_ray

# --- Result ----------------------------------------------------------------------------------------------------------

if [ -n "$stop" ] && [ "$code" -gt 128 ]; then
    code=75 # stopped before the driver had installed its signal handlers: nothing had started
fi
if [ "$code" = 0 ] && [ ! -s "$result" ]; then
    fail "stage $TUNESMITH_STAGE exited with 0 but left no result"
fi
if [ "$code" = 75 ]; then
    if [ "$stop" = requeue ]; then
        say "state saved, requeueing"
        requeue
    fi
    say "state saved, not requeued"
    exit 143
fi
if [ "$code" -gt 128 ]; then
    job_python --fault "the driver process of the job was killed by signal $((code - 128))" || true
fi
if [ "$code" = 1 ]; then
    leave_bad_nodes
fi
say "exit code $code"
exit "$code"
