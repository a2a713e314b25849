"""Maps the rooms at the top of the repository to subpackages of ``tunesmith``; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

# kernels/ has no __init__.py and must never have one (transformers imports any regular package of that name),
# so the rooms are found as namespace packages; a new subfolder of a room is found by itself.
ROOMS = ["configs", "rundir", "data", "kernels", "modeling", "training", "evaluation", "launcher", "report"]
ROOMS += ["slurm", "serving"]
HERE = Path(__file__).parent

packages = ["tunesmith"]
package_dir = {"tunesmith": "tunesmith"}
for room in ROOMS:
    for name in [room, *(f"{room}.{sub}" for sub in find_namespace_packages(str(HERE / room)))]:
        if "__pycache__" not in name:
            packages.append(f"tunesmith.{name}")
            package_dir[f"tunesmith.{name}"] = name.replace(".", "/")

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "tunesmith.configs": ["recipes/*.yaml", "clusters/*.yaml"],
        "tunesmith.slurm": ["*.sh"],
        "tunesmith.report": ["*.css", "*.js"],
        "tunesmith.serving": ["page/*", "store/migrations/*"],
    },
)
