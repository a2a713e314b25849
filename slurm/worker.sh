#!/bin/bash
# One worker under torchrun, which sets RANK etc. Its output goes to the log of its attempt and rank.
set -u
log=$(printf '%s/logs/attempt-%03d-rank-%05d.log' "$TUNESMITH_RUN_DIR" "$TUNESMITH_ATTEMPT" "$RANK")
exec "$TUNESMITH_PYTHON" -P -m tunesmith.training.worker "$TUNESMITH_RUN_DIR" --attempt "$TUNESMITH_ATTEMPT" \
    >>"$log" 2>&1
