"""A process that tokenizes texts with the installed transformers, for data/tokenization/agreement.py.

Input: a JSON object, `{"directory", "texts", "add_special_tokens"}`. Output: `{"serialized", "tokens"}`, or `{"error"}`
if transformers cannot load the tokenizer. serialized: the tokenizer as in tokenizer.json.

It hides torch from transformers, which then starts in a third of the time.
"""

import json
import os
import sys
from typing import Any

_HIDDEN = ("torch", "torchvision", "tensorflow", "jax", "scipy", "sklearn", "pandas", "datasets", "accelerate", "PIL")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Tokenize the texts of a request. Torch must not have been imported."""
    for name in _HIDDEN:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type] (None: the import fails)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(request["directory"], local_files_only=True)
        serialized = tokenizer.backend_tokenizer.to_str()
    # transformers raises anything for files that it cannot read; the tokenizer is then not compared
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    adds = request["add_special_tokens"]
    tokens = [tokenizer(text, add_special_tokens=adds)["input_ids"] for text in request["texts"]]
    return {"serialized": serialized, "tokens": tokens}


if __name__ == "__main__":
    output, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(answer(json.load(sys.stdin))), file=output)
