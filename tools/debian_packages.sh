#!/bin/sh
# Installs the Debian packages that the test suite uses, if possible (as root, with apt-get).
# Otherwise it does nothing, and the tests that need a missing package are skipped with that reason.
set -eu

# need COMMAND PACKAGE...: install the packages if the command is missing.
need() {
    command=$1
    shift
    if command -v "$command" >/dev/null 2>&1; then
        return
    fi
    packages="${packages:-} $*"
}

# One line per program that tests use.
need ip iproute2 # hosts in network namespaces
need slurmctld slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge # a local test cluster
need shellcheck shellcheck
need chromedriver chromium chromium-driver fonts-dejavu-core # browser tests of the server's page
need psql postgresql postgresql-client # the server's store for teams

if [ -z "${packages:-}" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    exit 0
fi
echo "Installing Debian packages:$packages"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
limit_s=${LOCK_TIMEOUT_S:-300}
deadline=$(($(date +%s) + limit_s))
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# with_lock ARGUMENT...: run apt-get once no other package manager is running (a new machine often updates itself).
# DPkg::Lock::Timeout waits for dpkg's locks; the locks of the package lists and the archive fail at once, so retry.
with_lock() {
    until apt-get -o DPkg::Lock::Timeout="$limit_s" "$@" >"$log" 2>&1; do
        if ! grep -q -e 'Could not get lock' -e 'Unable to lock' "$log" || [ "$(date +%s)" -ge "$deadline" ]; then
            return 1
        fi
        [ -n "${waiting:-}" ] || echo "Waiting for another package manager to finish (up to $limit_s s)"
        waiting=yes
        sleep 1
    done
}

# shellcheck disable=SC2086  # word splitting is intended
if ! { with_lock update && with_lock install --yes --no-install-recommends $packages; }; then
    tail -n 5 "$log" >&2
    echo "The packages could not be installed; the tests that need them will be skipped." >&2
fi
