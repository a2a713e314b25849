"""README.md of an export, its model card: base model, training, evaluation results. Hubs read the front matter."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith import __version__
from tunesmith.configs.plan import Plan
from tunesmith.configs.tasks import Task
from tunesmith.modeling.base_model.source import hub_snapshot
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import EvaluationEvent
from tunesmith.rundir.paths import RunDir

_DATA_TOO = "The training data may have additional license terms."
_LICENCE_OPEN = (
    "The base model's license applies to this model too; its directory does not state one, so check its source. "
    + _DATA_TOO
)


def model_card(plan: Plan, run: RunDir, *, form: str, step: int | None, gate: Mapping[str, Any]) -> str:
    """Return the card as Markdown with YAML front matter. It has no local paths, since a card is meant to be published.

    form: adapter or model. step: of the exported weights, None for the run's last. gate: result of the export gate.
    """
    licence = base_licence(Path(plan.model.directory))
    sections = [
        _front_matter(plan, form, licence),
        f"# {plan.recipe.name}",
        _summary(plan, form, step),
        MODEL_CARD_SECTIONS[plan.recipe.task](plan, form),
        *([f"## Special tokens\n\n{special}"] if (special := _special_tokens(plan)) else []),
        "## Data\n\n" + _data(plan),
        "## Results\n\n" + _results(plan.recipe.task_facts, run, step),
        "## Recipe\n\n" + _recipe(plan),
        "## Verification\n\n" + _gate(gate, form),
        "## License\n\n" + _licence(licence),
    ]
    return "\n\n".join(sections) + "\n"


def base_licence(directory: Path) -> str | None:
    """Return the license stated in the base model's card; None without a card or license."""
    card = directory / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    try:
        stated = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    licence = stated.get("license") if isinstance(stated, dict) else None
    return licence if isinstance(licence, str) else None


def base_name(plan: Plan) -> str:
    """Return the public name of the base model: the hub id, or the last part of a path."""
    hub = hub_snapshot(Path(plan.model.base_directory))
    if hub is not None:
        return hub[0]
    # The source of a continued run is an adapter.
    return Path(plan.model.base_directory if plan.recipe.model.adapter == "continue" else plan.model.source).name


def is_hub_model(plan: Plan) -> bool:
    """Whether the base model is a snapshot in the hub's cache."""
    return hub_snapshot(Path(plan.model.base_directory)) is not None


def _front_matter(plan: Plan, form: str, licence: str | None) -> str:
    facts: dict[str, Any] = {
        "library_name": "peft" if form == "adapter" else "transformers",
        "pipeline_tag": plan.recipe.task_facts.pipeline_tag,
        "tags": ["tunesmith", plan.recipe.method.kind, plan.recipe.task],
    }
    if is_hub_model(plan):
        facts["base_model"] = base_name(plan)
        facts["base_model_relation"] = "adapter" if form == "adapter" else "finetune"
    if licence is not None:
        facts["license"] = licence
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


def _summary(plan: Plan, form: str, step: int | None) -> str:
    what = {"full": "all weights", "last_layers": "the last layers"}.get(plan.recipe.method.kind, "a LoRA adapter")
    kept = "This is the adapter only: load it with its base model." if form == "adapter" else "This is the whole model."
    when = f" The weights are from step {step} of {plan.batch.total_steps}." if step is not None else ""
    return (
        f"{base_name(plan)} ({plan.model.model_type}, {plan.model.num_params:,} parameters), fine-tuned by training "
        f"{what} on {plan.data.train.num_rows:,} rows.{_earlier_adapter(plan)} {kept}{when} Created with Tunesmith "
        f"{__version__}."
    )


def _earlier_adapter(plan: Plan) -> str:
    """What the run started from besides a base model, as a sentence; empty if nothing."""
    if plan.recipe.model.adapter == "merge":
        return f" {base_name(plan)} is a LoRA adapter that was merged into its own base model before."
    if plan.model.adapter is None:
        return ""
    digest = f" (SHA-256 of its weights: {plan.model.adapter_sha256})" if plan.model.adapter_sha256 else ""
    return f" Training continued from the LoRA adapter {Path(plan.model.adapter).name}{digest}."


def _use_classifier(plan: Plan, form: str) -> str:
    lines = ["from transformers import pipeline", "", 'classify = pipeline("text-classification", "path/to/this")']
    lines.append('print(classify("...", top_k=None))')
    return _code(lines) + "\n\nLabels: " + ", ".join(plan.data.labels or [])


def _use_chat_model(plan: Plan, form: str) -> str:
    lines = [
        *_loading(plan, form, "CausalLM"),
        'messages = [{"role": "user", "content": "..."}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        *_CONTINUING,
    ]
    return _code(lines) + _template_note(plan) + _base_note(plan, form) + _quantized_note(plan, form)


def _template_note(plan: Plan) -> str:
    """What the chat template does by default in this export, if the recipe sets variables of it."""
    values = ", ".join(f"{name}={value!r}" for name, value in plan.recipe.model.chat_template_kwargs.items())
    if not values:
        return ""
    return (
        f"\n\nTrained with the chat template's variables `{values}`, which are defaults of `chat_template.jinja` here. "
        "Other values (arguments of `apply_chat_template`, or `chat_template_kwargs` of a server's requests) give "
        "prompts that differ from those of the training."
    )


def _use_text_model(plan: Plan, form: str) -> str:
    lines = [*_loading(plan, form, "CausalLM"), 'inputs = tokenizer("...", return_tensors="pt")', *_CONTINUING]
    return _code(lines) + _base_note(plan, form) + _quantized_note(plan, form)


def _use_encoder_decoder(plan: Plan, form: str) -> str:
    lines = [
        *_loading(plan, form, "Seq2SeqLM"),
        f'inputs = tokenizer({json.dumps(plan.recipe.seq2seq.prefix + "...")}, return_tensors="pt")',
        _GENERATING,
        "print(tokenizer.decode(answer[0], skip_special_tokens=True))",
    ]
    return _code(lines) + _base_note(plan, form)


MODEL_CARD_SECTIONS: dict[str, Callable[[Plan, str], str]] = {
    "chat": _use_chat_model,
    "completion": _use_text_model,
    "text": _use_text_model,
    "classification": _use_classifier,
    "seq2seq": _use_encoder_decoder,
    "preference": _use_chat_model,
    "kto": _use_chat_model,
}
"""The usage section by task, from the plan and the form of the export."""

_GENERATING = "answer = model.generate(**inputs, max_new_tokens=64)"
_CONTINUING = (
    _GENERATING,
    'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
)


def _loading(plan: Plan, form: str, kind: str) -> list[str]:
    """Code that loads model and tokenizer, as lines. kind: CausalLM or Seq2SeqLM."""
    path, tokenizer = '"path/to/this/directory"', "from transformers import AutoTokenizer"
    last = f"tokenizer = AutoTokenizer.from_pretrained({path})"
    if plan.model.carried is not None:
        name = plan.model.carried.class_name
        if form != "adapter":
            return [f"{tokenizer}, {name}", "", f"model = {name}.from_pretrained({path})", last]
        base = f'base = {name}.from_pretrained("path/to/{base_name(plan)}")'
        model = f"model = PeftModel.from_pretrained(base, {path})"
        return ["from peft import PeftModel", f"{tokenizer}, {name}", "", base, model, last]
    classes = ("peft", f"AutoPeftModelFor{kind}") if form == "adapter" else ("transformers", f"AutoModelFor{kind}")
    load = f"model = {classes[1]}.from_pretrained({path})"
    return [f"from {classes[0]} import {classes[1]}", tokenizer, "", load, last]


def _code(lines: Sequence[str]) -> str:
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _base_note(plan: Plan, form: str) -> str:
    added = plan.model.added
    if form == "adapter" and added is not None and plan.model.vocab_size > added.base_vocab_size:
        lines = [
            f'base = AutoModelForCausalLM.from_pretrained("path/to/{base_name(plan)}")',
            f"base.resize_token_embeddings({plan.model.vocab_size}, mean_resizing=False)",
            'model = PeftModel.from_pretrained(base, "path/to/this/directory")',
        ]
        return (
            f"\n\nThe adapter adds {len(added.tokens)} tokens to the vocabulary. First add rows to the base model:"
            "\n\n```python\n" + "\n".join(lines) + "\n```"
        )
    if form != "adapter" or is_hub_model(plan):
        return ""
    return (
        "\n\n`adapter_config.json` names the base model by its directory on the training machine; "
        "set `base_model_name_or_path` to your copy."
    )


def _quantized_note(plan: Plan, form: str) -> str:
    """How the base model of an adapter was read, if its published weights are dequantized: transformers and other
    servers may compute in the published format, whose results differ a little."""
    quantized = plan.model.quantized
    if form != "adapter" or quantized is None or quantized.kind == "bitsandbytes":
        return ""
    option = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}[quantized.kind]
    return (
        f"\n\nThe published weights of the base model are quantized ({quantized.name}); the adapter was trained on the "
        f"dequantized weights. To load them so, pass `quantization_config={option}(dequantize=True)` where "
        "transformers reads this format, or use the merged model."
    )


def _special_tokens(plan: Plan) -> str:
    """How special tokens in texts of users were tokenized, since other servers may differ; empty for the task text."""
    task, data = plan.recipe.task_facts, plan.data
    if not task.has_prompt:
        return ""
    rows = f"{data.num_special:,} of the rows contain some."
    if not plan.recipe.data.split_special_tokens:
        return (
            "Special tokens in messages and prompts were control tokens in training, also where a user wrote them, as "
            f"in most servers. {rows}"
        )
    if not task.is_causal or not (task.templated or task.section):  # its prompts are never conversations
        return (
            "Special tokens that a text contains, such as `<|endoftext|>`, were encoded as text in training. By "
            f"default, tokenizers make control tokens of them; `split_special_tokens=True` does not. {rows}"
        )
    return (
        "Special tokens in system, user and tool messages, such as `<|im_end|>`, were encoded as text in training, as "
        "they are in Tunesmith's server: only the chat template writes control tokens. Most other servers make control "
        "tokens of them, so that a user can end a message or begin one of another role. With transformers, "
        "`apply_chat_template(..., sanitize_control_tokens=True)` gives the tokens of the training, in versions that "
        f"have this argument. {rows}"
    )


def _data(plan: Plan) -> str:
    data = plan.data
    rows = [("train", data.train), ("validation", data.validation)]
    table = ["| split | rows | tokens | supervised tokens |", "|---|---|---|---|"]
    table += [f"| {name} | {s.num_rows:,} | {s.num_tokens:,} | {s.supervised_tokens:,} |" for name, s in rows if s]
    left = (
        f"Rejected: {data.num_rejected:,}; dropped: {data.num_dropped:,}; truncated: {data.num_truncated:,}; "
        f"duplicates: {data.num_duplicates:,}. Fingerprint of the prepared data: `{data.fingerprint}`."
    )
    return "\n".join(table) + "\n\n" + left


def _results(task: Task, run: RunDir, step: int | None) -> str:
    """Validation results before and after training: the last event of each; `after` is that of the exported step."""
    before = after = None
    for event in read_events(run.events, EvaluationEvent):
        if event.when == "before":
            before = event
        elif step is None or event.step == step:
            after = event
    events = [(name, event) for name, event in (("before", before), ("after", after)) if event is not None]
    measured = [(name, event.scores.to_json()) for name, event in events]
    if not measured:
        return "There were no validation rows, so there are no results."
    if task.section is not None and any(task.section in event for _, event in measured):
        return _task_results(task.section, measured)
    table = ["| | loss (nats per token) | perplexity | token accuracy | rows |", "|---|---|---|---|---|"]
    for name, event in measured:
        loss = _number(event, "loss") + (f" ± {_number(event, 'loss_error')}" if event.get("loss_error") else "")
        cells = [
            name,
            loss,
            _number(event, "perplexity"),
            _percent(event, "token_accuracy"),
            str(event.get("num_examples")),
        ]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table) + "\n\nOn the validation rows, over supervised tokens; ± is one standard error over rows."


def _task_results(section: str, measured: list[tuple[str, Any]]) -> str:
    """The metrics of the task, as in the events, without those by label."""
    parts = [(when, event.get(section, {}), event) for when, event in measured]
    columns = [(when, part.get("metrics") or part, event) for when, part, event in parts]
    names = [name for name, value in columns[-1][1].items() if "/" not in name and isinstance(value, (int, float))]
    table = ["| | " + " | ".join([when for when, _, _ in columns]) + " |", "|---|" + "---|" * len(columns)]
    table += [f"| {name} | " + " | ".join(_number(values, name) for _, values, _ in columns) + " |" for name in names]
    table.append("| loss | " + " | ".join(_number(event, "loss") for _, _, event in columns) + " |")
    table.append("| rows | " + " | ".join(str(event.get("num_examples")) for _, _, event in columns) + " |")
    return "\n".join(table) + "\n\nOn the validation rows."


def _recipe(plan: Plan) -> str:
    """The recipe sections that determine the weights, without local paths."""
    shaping = {"name", "task", "method", "data", "optimization", "precision", "seed"}
    if plan.recipe.task_facts.section is not None:
        shaping.add(plan.recipe.task_facts.section)
    recipe = plan.recipe.model_dump(mode="json", include=shaping, exclude_none=True)
    for key in ("train", "validation"):
        value = recipe["data"][key]
        if isinstance(value, list):
            recipe["data"][key] = [_without_folders(entry) for entry in value]
    text = yaml.safe_dump({"model": {"base": base_name(plan)}, **recipe}, sort_keys=False, allow_unicode=True)
    return f"```yaml\n{text}```"


def _without_folders(entry: Any) -> Any:
    """An entry of data.train or data.validation: a path, or the values of a data set."""
    return (
        Path(entry).name if isinstance(entry, str) else {**entry, "path": [Path(name).name for name in entry["path"]]}
    )


def _gate(gate: Mapping[str, Any], form: str) -> str:
    from tunesmith.report.gate import gate_measure

    return (
        f"Loaded with plain transformers{' and peft' if form == 'adapter' else ''} and compared with the trained "
        f"model on {gate['rows']} rows ({gate['row_source']}): {gate_measure(gate)}, greedy continuations "
        f"{'equal' if gate['greedy_equal'] else 'equal except at ties'}. `manifest.json` has the hash of every file."
    )


def _licence(licence: str | None) -> str:
    if licence is None:
        return _LICENCE_OPEN
    return f"The base model states `{licence}`, which applies to this model too. {_DATA_TOO}"


def _percent(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key)
    return f"{100 * value:.1f}%" if isinstance(value, (int, float)) else json.dumps(value)


def _number(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key)
    return f"{value:.4g}" if isinstance(value, (int, float)) else json.dumps(value)
