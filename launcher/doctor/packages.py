"""Python and the installed packages, compared with the bounds in the metadata of the installed Tunesmith."""

import platform
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from tunesmith.launcher.doctor.finding import Finding, Result, Severity

DEVELOPMENT = "dev"
"""The extra whose packages no run uses."""
_WHY = "Tunesmith is tested with versions inside its bounds only; others may fail or change results"


def check_python(version: str | None = None, name: str = "tunesmith") -> Result:
    """Compare the version of Python with `Requires-Python`."""
    version = version or platform.python_version()
    try:
        bounds = ", ".join(metadata.metadata(name).get_all("Requires-Python") or ())
    except metadata.PackageNotFoundError:
        bounds = ""
    seen = f"Python {version}"
    if SpecifierSet(bounds).contains(version, prereleases=True):
        return Result("python", seen)
    remedy = f"create a virtual environment with Python {bounds} and install {name} in it"
    return Result("python", seen, (Finding("python", "error", f"{seen}, required: {bounds}", _WHY, remedy),))


def check_packages(name: str = "tunesmith") -> Result:
    """Compare the installed packages with the requirements of a distribution and of its extras, except `dev`.

    A missing package of an extra is no finding.
    """
    try:
        requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        extras = metadata.metadata(name).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        what, why = f"the metadata of {name} is not installed", "the versions of its packages cannot be compared"
        return Result("packages", what, (Finding("packages", "warning", what, why, f"pip install {name}"),))
    findings, num_compared = [], 0
    for requirement in requirements:
        is_required = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        used_by = [extra for extra in extras if extra != DEVELOPMENT]
        is_optional = any(requirement.marker and requirement.marker.evaluate({"extra": extra}) for extra in used_by)
        if requirement.name == name or not (is_required or is_optional):
            continue
        num_compared += 1
        if finding := _compare(requirement, "error" if is_required else "warning"):
            findings.append(finding)
    unique = tuple(dict.fromkeys(findings))
    return Result("packages", f"{num_compared} requirements of {name} compared", unique)


def _compare(requirement: Requirement, severity: Severity) -> Finding | None:
    bounded_name = f"{requirement.name}{requirement.specifier}"
    remedy = f"pip install '{bounded_name}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        if severity != "error":
            return None
        what = f"{requirement.name} is not installed, required: {requirement.specifier}"
        return Finding("packages", "error", what, "Tunesmith does not work without it", remedy)
    try:
        fits = requirement.specifier.contains(version, prereleases=True)
    except (InvalidVersion, TypeError):  # the metadata is damaged
        fits = False
    if fits:
        return None
    what = f"{requirement.name} {version}, required: {requirement.specifier}"
    return Finding("packages", severity, what, _WHY, remedy)
