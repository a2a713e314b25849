#!/bin/sh
# Installs the Debian packages that the test suite can use, where that is possible: as root, with apt-get.
# Everywhere else it does nothing, and the tests that need one of them skip and say so.
set -eu

# need COMMAND PACKAGE...: the packages are installed where the command is not there.
need() {
    command=$1
    shift
    if command -v "$command" >/dev/null 2>&1; then
        return
    fi
    wanted="${wanted:-} $*"
}

# One line for each program that some test drives.
need ip iproute2 # hosts in network namespaces
need slurmctld slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge # a cluster of the tests' own
need shellcheck shellcheck
need chromedriver chromium chromium-driver fonts-dejavu-core # the page of the server, in a browser
need psql postgresql postgresql-client # the server's store for teams

if [ -z "${wanted:-}" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    exit 0
fi
echo "Installing Debian packages:$wanted"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
limit_s=${LOCK_TIMEOUT_S:-300}
deadline=$(($(date +%s) + limit_s))
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# with_lock ARGUMENT...: apt-get, once no other package manager runs (a fresh machine often updates itself).
# DPkg::Lock::Timeout waits for dpkg's locks; those of the package lists and of the archive fail at once: try again.
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

# shellcheck disable=SC2086  # a list of names, meant to be split
if ! { with_lock update && with_lock install --yes --no-install-recommends $wanted; }; then
    tail -n 5 "$log" >&2
    echo "They could not be installed; the tests that need them will skip." >&2
fi
