"""`python -m tunesmith.modeling.proof DIRECTORY`: proves the model of a directory and prints the findings as JSON."""

import json
import sys
from pathlib import Path

from tunesmith.errors import InputError, RunFault
from tunesmith.large_imports import garbage_collection_paused

with garbage_collection_paused():
    from tunesmith.modeling.proof.cut import prove_directory


def findings_json(directory: Path) -> str:
    """Return the findings about a model, with what was cut. Otherwise, `{"error": ...}` with the fields of an error of
    its files, or `{"fault": reason}`."""
    try:
        findings, cut = prove_directory(directory)
    except (InputError, RunFault) as error:
        return json.dumps({"error": {"what": error.what, "where": error.where, "remedy": error.remedy}})
    except Exception as error:  # the forward of a class may fail in any way: the user needs the reason
        return json.dumps({"fault": f"{type(error).__name__}: {error}"})
    return json.dumps({**findings.as_json(), "cut": cut})


if __name__ == "__main__":
    print(findings_json(Path(sys.argv[1])))
