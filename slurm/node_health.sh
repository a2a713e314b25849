#!/bin/bash
# Is this node fit for the job? Prints `healthy NODE`, or `unhealthy NODE: what is wrong`; always exits 0, since what it
# printed is what counts, and a node that prints nothing is not fit.
#
#   SLURMD_NODENAME              the node's name for Slurm
#   TUNESMITH_GPUS               GPUs that must be there and work; 0: none are asked for
#   TUNESMITH_SCRATCH            fast disk; empty: $TMPDIR or /tmp
#   TUNESMITH_MIN_SCRATCH_GIB    what must be free on it
#   TUNESMITH_RUN_DIR            must be seen and be writable from here
#   TUNESMITH_CLOCK              seconds since the epoch on the first node, a moment ago
#   TUNESMITH_MAX_CLOCK_OFFSET_S
#   TUNESMITH_INTERFACE          must be up; empty: not looked at
set -u

unfit() {
    echo "unhealthy $SLURMD_NODENAME: $*"
    exit 0
}

# GPUs: every one answers, and none has errors that the driver could not correct or waits for a reset.
if [ "${TUNESMITH_GPUS:-0}" -gt 0 ]; then
    if ! command -v nvidia-smi >/dev/null 2>&1; then
        unfit "nvidia-smi is not there, and $TUNESMITH_GPUS GPUs are asked for"
    fi
    query=index,ecc.errors.uncorrected.volatile.total
    if ! table=$(timeout 60 nvidia-smi "--query-gpu=$query" --format=csv,noheader 2>&1); then
        unfit "nvidia-smi failed: $(head -n 1 <<<"$table")"
    fi
    seen=$(grep -c . <<<"$table")
    if [ "$seen" -lt "$TUNESMITH_GPUS" ]; then
        unfit "$seen of $TUNESMITH_GPUS GPUs can be seen"
    fi
    while IFS=', ' read -r index errors; do
        case $errors in
        0 | '[N/A]' | '[Not Supported]' | N/A) ;;
        *[!0-9]*) unfit "GPU $index is in error: $errors" ;;
        *) unfit "GPU $index has $errors uncorrected memory errors" ;;
        esac
    done <<<"$table"
fi

# Disks: room on the fast one, and the shared one can be written from here.
scratch=${TUNESMITH_SCRATCH:-${TMPDIR:-/tmp}}
if [ ! -d "$scratch" ] || [ ! -w "$scratch" ]; then
    unfit "the scratch directory $scratch is not there or cannot be written"
fi
free=$(df -Pk "$scratch" | awk 'NR == 2 { print int($4 / 1048576) }')
if [ "${free:-0}" -lt "${TUNESMITH_MIN_SCRATCH_GIB:-0}" ]; then
    unfit "$free GiB are free on $scratch, $TUNESMITH_MIN_SCRATCH_GIB are needed"
fi
probe=$TUNESMITH_RUN_DIR/jobs/.health-$SLURM_JOB_ID-$SLURMD_NODENAME
if ! (echo probe >"$probe") 2>/dev/null; then
    unfit "the run directory $TUNESMITH_RUN_DIR cannot be written: is it on a file system that all nodes share?"
fi
rm -f "$probe"

# Clock: heartbeats and certificates rely on it.
offset=$(($(date +%s) - TUNESMITH_CLOCK))
if [ "${offset#-}" -gt "${TUNESMITH_MAX_CLOCK_OFFSET_S:-60}" ]; then
    unfit "its clock is $offset seconds from the first node's"
fi

# Network.
if [ -n "${TUNESMITH_INTERFACE:-}" ]; then
    if ! addresses=$(ip -o -4 addr show dev "$TUNESMITH_INTERFACE" 2>/dev/null) || [ -z "$addresses" ]; then
        unfit "the interface $TUNESMITH_INTERFACE is not there or has no address"
    fi
    state=$(cat "/sys/class/net/$TUNESMITH_INTERFACE/operstate" 2>/dev/null)
    if [ "$state" = down ]; then
        unfit "the interface $TUNESMITH_INTERFACE is down"
    fi
fi

echo "healthy $SLURMD_NODENAME"
