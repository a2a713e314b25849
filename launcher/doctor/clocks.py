"""The clock of this machine."""

from tunesmith.launcher.doctor.finding import Finding, Result
from tunesmith.launcher.doctor.programs import output_of


def check_clock() -> Result:
    """Whether the clock is synchronized, as timedatectl reports; unknown in most containers, which passes."""
    output, failure = output_of(("timedatectl", "show", "--property=NTPSynchronized", "--value"))
    if failure or output.strip() not in ("yes", "no"):
        return Result("clock", "not known here whether it is synchronized")
    if output.strip() == "yes":
        return Result("clock", "synchronized")
    why = "heartbeats and the order of events of several hosts depend on it; runs need clocks within 5 s"
    what, remedy = "the clock is not synchronized", "start chrony or systemd-timesyncd (`timedatectl set-ntp true`)"
    return Result("clock", what, (Finding("clock", "warning", what, why, remedy),))
