#!/bin/bash
# The body of every Tunesmith batch job. Above it stand the #SBATCH lines and its input, as exported variables:
#
#   TUNESMITH_RUN_DIR      the run's directory, on a file system that all nodes share; of an array: the directory above
#   TUNESMITH_STAGE        prepare | train | evaluate | export
#   TUNESMITH_LAUNCHER     ray | torchrun: how the processes of `train` are started
#   TUNESMITH_PYTHON       the interpreter, or what starts it in a container
#   TUNESMITH_SCRIPTS      the directory of the scripts beside this one
#   TUNESMITH_MAX_LIVES    starts at most, requeues included
#   TUNESMITH_GPUS         GPUs on each node
#   TUNESMITH_INTERFACE    network interface between the nodes; empty: what the nodes' names resolve to
#   TUNESMITH_SCRATCH      fast disk of each node; empty: $TMPDIR or /tmp
#   TUNESMITH_MODULES      a module a line
#
# Exit codes: 0 done, and its result is there; 1 a fault; 2 bad input; 75 saved and requeued; 143 saved and left.
set -u

say() { printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*"; }

# --- Which run, which life -------------------------------------------------------------------------------------------

life=$((${SLURM_RESTART_COUNT:-0} + 1)) # Slurm leaves the count unset in the first life
run=$TUNESMITH_RUN_DIR
number=$SLURM_JOB_ID # as Slurm names the job to people: an array's task has an id of its own beside it
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    run=$(printf '%s/%03d' "$TUNESMITH_RUN_DIR" "$SLURM_ARRAY_TASK_ID")
    number=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi
export TUNESMITH_RUN_DIR=$run TUNESMITH_LIFE=$life TUNESMITH_JOB_NUMBER=$number
mkdir -p "$run/logs" "$run/jobs" || exit 1
exec >>"$(printf '%s/logs/job-%s-life-%03d.log' "$run" "$number" "$life")" 2>&1
result=$run/jobs/$TUNESMITH_STAGE-$number.result
say "job $number, $TUNESMITH_STAGE, life $life of at most $TUNESMITH_MAX_LIVES on $SLURM_JOB_NODELIST"

job_python() { "$TUNESMITH_PYTHON" -P -m tunesmith.cli.batch_step "$run" --stage "$TUNESMITH_STAGE" "$@"; }

# fail WHAT: the job ends with 1, and the run directory knows why.
fail() {
    say "error: $1"
    job_python --fault "$1" || true
    exit 1
}

# Since Slurm 22.05 a step has one core unless it is told again how many the job has.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

while IFS= read -r module; do
    if [ -n "$module" ]; then
        say "module load $module"
        module load "$module" || fail "module load $module did not work"
    fi
done <<<"${TUNESMITH_MODULES:-}"

# --- Being asked to end ----------------------------------------------------------------------------------------------
# USR2 comes from Slurm before the time limit: save, requeue, go on. TERM comes with scancel, a requeue by hand or a
# preemption: save what can be saved in the time that is left; whoever sent it has already decided what comes next.

asked='' driver=''
# shellcheck disable=SC2317  # the traps call it
ask() {
    asked=$1
    if [ -n "$driver" ]; then
        kill -USR2 "$driver" 2>/dev/null || true
    fi
}
trap 'ask requeue' USR2
trap 'ask leave' TERM

# wait_for PID: its exit code. A trapped signal ends `wait` early: then the process is still there.
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

# requeue [NODES]: start this job again later, without these nodes. The job is told to end by that very call.
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

if [ "$life" -gt "$TUNESMITH_MAX_LIVES" ]; then
    fail "the job was started $((life - 1)) times and did not end: max_lives of the cluster file allows no more"
fi

# --- Are the nodes fit? ----------------------------------------------------------------------------------------------

# Asked before the first step, and again after a failure: a node that died took the run along, and is not its fault.

leave_bad_nodes() {
    local health node why bad=''
    TUNESMITH_CLOCK=$(date +%s)
    export TUNESMITH_CLOCK
    health=$(timeout 90 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --input=none \
        bash "$TUNESMITH_SCRIPTS/node_health.sh")
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        if ! grep -qx "healthy $node" <<<"$health"; then
            why=$(sed -n "s/^unhealthy $node: //p" <<<"$health")
            say "node $node is not fit: ${why:-it did not answer}" | tee -a "$run/logs/bad-nodes.log"
            bad=${bad:+$bad,}$node
        fi
    done
    if [ -n "$bad" ]; then
        say "requeueing without $bad"
        requeue "$bad"
    fi
}
leave_bad_nodes

# --- Where the nodes meet --------------------------------------------------------------------------------------------
# This script runs on the first node: its address is where all meet, at a port that follows from the job's number, so
# that jobs that share nodes do not meet each other. A block of 20 ports belongs to a job.

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

# taken PORT: whether somebody listens there.
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

# --- The work --------------------------------------------------------------------------------------------------------

ray_steps=()
stop_ray() {
    for step in "${ray_steps[@]}"; do
        kill -TERM "$step" 2>/dev/null || true # srun ends its step, and with it what it started
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
if [ -n "$asked" ]; then
    code=75
else
    # No function: in its place a shell would stand between, which a signal ends instead of the driver.
    "$TUNESMITH_PYTHON" -P -m tunesmith.cli.batch_step "$run" --stage "$TUNESMITH_STAGE" &
    driver=$!
    if [ -n "$asked" ]; then # the signal came before there was anybody to tell
        kill -USR2 "$driver" 2>/dev/null || true
    fi
    wait_for "$driver"
    code=$?
    driver=''
fi
stop_ray

# --- How it ended ----------------------------------------------------------------------------------------------------

if [ -n "$asked" ] && [ "$code" -gt 128 ]; then
    code=75 # it was asked before it could listen: nothing had begun
fi
if [ "$code" = 0 ] && [ ! -s "$result" ]; then
    fail "the stage $TUNESMITH_STAGE ended with 0 but left no result"
fi
if [ "$code" = 75 ]; then
    if [ "$asked" = requeue ]; then
        say "asked to save: requeueing"
        requeue
    fi
    say "asked to leave: the state is saved, the job is not requeued"
    exit 143
fi
if [ "$code" -gt 128 ]; then
    job_python --fault "the driver of the job was killed by signal $((code - 128))" || true
fi
if [ "$code" = 1 ]; then
    leave_bad_nodes
fi
say "ended with $code"
exit "$code"
