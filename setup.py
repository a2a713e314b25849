"""Maps the folders at the top of the repository to subpackages of ``tunesmith``; all else is in pyproject.toml."""

import tomllib
from pathlib import Path

from setuptools import find_namespace_packages, setup

# kernels/ has no __init__.py and must never have one (transformers imports any regular package of that name),
# so the folders are found as namespace packages; a new sub-package is found by itself.
HERE = Path(__file__).parent
FOLDERS = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tunesmith"]["packages"]

packages = ["tunesmith"]
package_dir = {"tunesmith": "tunesmith"}
for folder in FOLDERS:
    for name in [folder, *(f"{folder}.{sub}" for sub in find_namespace_packages(str(HERE / folder)))]:
        if "__pycache__" not in name:
            packages.append(f"tunesmith.{name}")
            package_dir[f"tunesmith.{name}"] = name.replace(".", "/")

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "tunesmith.configs": ["recipes/*.yaml", "clusters/*.yaml"],
        "tunesmith.configs.migration": ["tables/*.yaml"],
        "tunesmith.slurm": ["*.sh"],
        "tunesmith.report": ["*.css", "*.js"],
        "tunesmith.serving": ["page/*", "store/migrations/*"],
    },
)
