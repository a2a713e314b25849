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
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086  # a list of names, meant to be split
if ! { apt-get update && apt-get install --yes --no-install-recommends $wanted; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "They could not be installed; the tests that need them will skip." >&2
fi
rm -f "$log"
