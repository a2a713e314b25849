#!/bin/bash
# Health check of one node. Prints `healthy NODE` or `unhealthy NODE: cause`. Always exits with 0: only the output
# counts, and a node without output is unhealthy.
#
#   SLURMD_NODENAME                name of the node in Slurm
#   TUNESMITH_GPUS                 number of working GPUs required; 0: none
#   TUNESMITH_SCRATCH              local disk; empty: $TMPDIR or /tmp
#   TUNESMITH_MIN_SCRATCH_GIB      free space required on it
#   TUNESMITH_RUN_DIR              must exist and be writable
#   TUNESMITH_CLOCK                current time of the first node, seconds since the epoch
#   TUNESMITH_MAX_CLOCK_OFFSET_S   maximum difference from it
#   TUNESMITH_INTERFACE            must be up; empty: not checked
set -u

unhealthy() {
    echo "unhealthy $SLURMD_NODENAME: $*"
    exit 0
}

# GPUs: all respond, none has uncorrected memory errors or needs a reset.
if [ "${TUNESMITH_GPUS:-0}" -gt 0 ]; then
    if ! command -v nvidia-smi >/dev/null 2>&1; then
        unhealthy "nvidia-smi not found, but $TUNESMITH_GPUS GPUs are required"
    fi
    query=index,ecc.errors.uncorrected.volatile.total
    if ! table=$(timeout 60 nvidia-smi "--query-gpu=$query" --format=csv,noheader 2>&1); then
        unhealthy "nvidia-smi failed: $(head -n 1 <<<"$table")"
    fi
    visible=$(grep -c . <<<"$table")
    if [ "$visible" -lt "$TUNESMITH_GPUS" ]; then
        unhealthy "only $visible of $TUNESMITH_GPUS GPUs are visible"
    fi
    while IFS=', ' read -r index errors; do
        case $errors in
        0 | '[N/A]' | '[Not Supported]' | N/A) ;;
        *[!0-9]*) unhealthy "GPU $index reports: $errors" ;;
        *) unhealthy "GPU $index has $errors uncorrected memory errors" ;;
        esac
    done <<<"$table"
fi

# Disks: enough space on the local disk, and the run directory is writable.
scratch=${TUNESMITH_SCRATCH:-${TMPDIR:-/tmp}}
if [ ! -d "$scratch" ] || [ ! -w "$scratch" ]; then
    unhealthy "the scratch directory $scratch does not exist or is not writable"
fi
free=$(df -Pk "$scratch" | awk 'NR == 2 { print int($4 / 1048576) }')
if [ "${free:-0}" -lt "${TUNESMITH_MIN_SCRATCH_GIB:-0}" ]; then
    unhealthy "$free GiB free on $scratch, $TUNESMITH_MIN_SCRATCH_GIB required"
fi
probe=$TUNESMITH_RUN_DIR/jobs/.health-$SLURM_JOB_ID-$SLURMD_NODENAME
if ! (echo probe >"$probe") 2>/dev/null; then
    unhealthy "the run directory $TUNESMITH_RUN_DIR is not writable: is it on a file system shared by all nodes?"
fi
rm -f "$probe"

# Clock: heartbeats and certificates depend on it.
offset=$(($(date +%s) - TUNESMITH_CLOCK))
if [ "${offset#-}" -gt "${TUNESMITH_MAX_CLOCK_OFFSET_S:-60}" ]; then
    unhealthy "its clock differs from the first node's by $offset s"
fi

# Network.
if [ -n "${TUNESMITH_INTERFACE:-}" ]; then
    if ! addresses=$(ip -o -4 addr show dev "$TUNESMITH_INTERFACE" 2>/dev/null) || [ -z "$addresses" ]; then
        unhealthy "the interface $TUNESMITH_INTERFACE does not exist or has no address"
    fi
    state=$(cat "/sys/class/net/$TUNESMITH_INTERFACE/operstate" 2>/dev/null)
    if [ "$state" = down ]; then
        unhealthy "the interface $TUNESMITH_INTERFACE is down"
    fi
fi

echo "healthy $SLURMD_NODENAME"
