#!/bin/sh
# Creates the virtual environment with Tunesmith (editable) and its development tools.
# Usage: sh tools/make_env.sh DIRECTORY. PYTHON=/path/to/python selects the interpreter.
set -eu
venv=$1
cd "$(dirname "$0")/.."
started=$(date +%s)

is_suitable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if is_suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    {
        echo "No suitable Python found (tried: ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14})."
        echo "  required:   Python 3.11 or newer with the venv module"
        echo "  available:  $(python3 --version 2>&1 || true)"
        echo "  what to do: install it (Debian, Ubuntu: apt-get install python3 python3-venv), or select one: make PYTHON=/path/to/python"
    } >&2
    exit 1
}

if ! is_suitable "$venv/bin/python"; then
    python=$(find_python)
    echo "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

# pip's output goes to a log; one line per large package shows the progress of long downloads.
log=$venv/install.log
echo "Installing Tunesmith and its tools (a few minutes the first time; pip output: $log)"
{
    code=0
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --editable '.[dev]' 2>&1 || code=$?
    echo "pip ended with $code"
} | tee "$log" | awk '
    /^ *(Downloading|Using cached|Processing) .*\.whl.*\([0-9.]+ (MB|GB)\)/ {
        name = $0; sub(/^ *(Downloading|Using cached|Processing) /, "", name); sub(/^.*\//, "", name)
        size = name; sub(/^[^(]*\(/, "", size); sub(/\).*/, "", size)
        split(name, part, "-")
        if (size ~ /GB/ || size + 0 >= 5) printf "  %s %s (%s)\n", part[1], part[2], size
    }
    /^Installing collected packages/ { printf "  unpacking %d packages\n", NF - 3 }
    { fflush() }'
if ! grep -q '^pip ended with 0$' "$log"; then
    tail -n 25 "$log" >&2
    echo "The packages could not be installed; the end of $log is shown above." >&2
    exit 1
fi
echo "Environment ready after $(($(date +%s) - started)) s"
