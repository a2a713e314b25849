"""Loading an export as a user would: with transformers and peft alone."""

from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from tunesmith.configs.plan import Plan
from tunesmith.configs.sections.method import QLora
from tunesmith.modeling.base_model.multimodal import text_model_in
from tunesmith.modeling.loading.base import load_base
from tunesmith.modeling.loading.four_bit_experts import round_to_four_bits
from tunesmith.modeling.loading.load import load_model, make_room, quiet
from tunesmith.training.export.published_class import published_class


def load_plain(
    export: Path, plan: Plan, dtype: torch.dtype, device: torch.device, auto: Any = AutoModelForCausalLM
) -> tuple[torch.nn.Module | None, str | None]:
    """Load the export with transformers and peft alone. Returns the model, or None and the reason of the failure.

    auto: transformers' class for the task. The base model of an adapter is loaded as for training if it is in FP8 or
    MXFP4: transformers computes in FP8 on some GPUs, and does not dequantize each form (loading/dequantize.py).
    """
    is_adapter = (export / "adapter_config.json").is_file()
    source = Path(plan.model.base_directory) if is_adapter else export
    text = None if plan.model.carried is None else text_model_in(Path(plan.model.directory))
    try:
        if text is not None:
            auto = published_class(source)
        with quiet():
            read: Any = is_adapter and _dequantized_base(plan, dtype, device)
            read = read or auto.from_pretrained(
                source,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                quantization_config=_quantization(plan, dtype) if is_adapter else None,
                device_map={"": device} if is_adapter and isinstance(plan.recipe.method, QLora) else None,
            )
            model, info = read
            for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                odd = sorted(map(str, info.get(what, ())))
                if what == "unexpected_keys" and text is not None:  # the base model has them, too: compared as files
                    odd = [name for name in odd if text.names.own_name(name) is not None]
                if not is_adapter and odd:
                    return None, f"transformers reports {what.replace('_', ' ')}: {odd[0]}"
            for module in model.modules():
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = False  # on some CPUs bitsandbytes would compute in bf16
                if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
                    state.dtype = dtype  # read when weights are compared; products are in the type of their input
            if is_adapter and isinstance(plan.recipe.method, QLora) and plan.model.num_experts is not None:
                round_to_four_bits(model, double_quantization=plan.recipe.method.double_quantization)
            if is_adapter:
                make_room(model, export)
            loaded = PeftModel.from_pretrained(model, str(export)) if is_adapter else model
    except Exception as error:  # any exception that a user of the export would get
        return None, f"it cannot be loaded: {type(error).__name__}: {error}"
    if (export / "generation_config.json").is_file():
        set_greedy(model, export)
    proof = plan.model.proof
    if proof is not None and not proof.cached_generation and model.generation_config is not None:
        model.generation_config.use_cache = False  # the live model generates without the cache, too
    return loaded.to(device).eval(), None


def _dequantized_base(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, dict] | None:
    """The base model of an adapter and nothing to report, if it is published in a format that is dequantized."""
    if plan.model.quantized is None or plan.model.quantized.kind == "bitsandbytes":
        return None
    base = Path(plan.model.base_directory)
    if plan.model.num_experts is not None:  # whole, as in `_quantization`
        return load_model(base, dtype=dtype, device=device), {}  # type: ignore[return-value]  # not an adapter
    return load_base(base, plan.recipe.method, dtype=dtype, device=device), {}


def _quantization(plan: Plan, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The base model of an adapter trained on 4-bit weights is loaded in 4 bits, too. With experts it is loaded whole,
    and rounded: transformers does not hold experts in 4 bits, nor can peft adapt packed weights by parameter."""
    if not isinstance(plan.recipe.method, QLora) or plan.model.num_experts is not None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=plan.recipe.method.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def set_greedy(model: PreTrainedModel, export: Path) -> None:
    """Use the stop tokens of the export, but greedy decoding without penalties, whatever its generation config sets."""
    exported = GenerationConfig.from_pretrained(export)
    pad = exported.pad_token_id
    stops = exported.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=stops,
        pad_token_id=pad if pad is not None else stops[0] if isinstance(stops, list) else stops,
        bos_token_id=exported.bos_token_id,
        decoder_start_token_id=exported.decoder_start_token_id,
        do_sample=False,
    )
