"""An adapter merged into its base model: python -m tunesmith.training.export.merge BASE ADAPTER TARGET

Sums are computed and stored in fp32. Tokenizer and chat template are the adapter's if it has them.
"""

import shutil
import sys
from pathlib import Path

import torch

from tunesmith.errors import TunesmithError
from tunesmith.model_files import ADAPTER_CONFIG, MANIFEST
from tunesmith.modeling.base_model.adapter_files import ADAPTER_WEIGHTS
from tunesmith.modeling.base_model.companion_files import companions, is_companion
from tunesmith.modeling.base_model.multimodal import text_model_in
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.text_model import causal_config
from tunesmith.modeling.parts import causal_lm
from tunesmith.training.export.files import heads_are_tied, write_weights

_OWN = (MANIFEST, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf")


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Write the merged model to the new directory `target`. InputError if the adapter does not fit the base model."""
    model = causal_lm(load_model(adapter, dtype=torch.float32, base=base))
    config = causal_config(base)
    config.tie_word_embeddings = heads_are_tied(model)
    config.vocab_size = model.get_input_embeddings().num_embeddings  # an adapter may have rows for new tokens
    target.mkdir(exist_ok=True)
    write_weights(model, config, base, target, torch.float32, text_model_in(base))
    for path in sorted(base.iterdir()):
        skipped = path.name in _OWN or path.name.startswith(".") or path.name.endswith(_WEIGHTS)
        if path.is_file() and not skipped and not is_companion(path.name) and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
    for name, path in companions(base, adapter).items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)


if __name__ == "__main__":
    try:
        merge(*map(Path, sys.argv[1:4]))
    except TunesmithError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))
