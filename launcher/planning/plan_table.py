"""Shows a plan on the terminal: model, data, and every choice with its reason and its bytes."""

import json

from rich.table import Table

from tunesmith.configs.plan import Plan
from tunesmith.launcher.measured_runs import EarlierRuns
from tunesmith.launcher.planning.disk import disk_need
from tunesmith.launcher.terminal import TextConsole
from tunesmith.modeling.base_model.positions import positions_warning
from tunesmith.report.summary import method_of
from tunesmith.report.wording import count, duration, omissions, percent, plural, size


def show_plan(plan: Plan, console: TextConsole, earlier: EarlierRuns | None = None) -> None:
    """earlier: of earlier runs on this machine; None: there are none."""
    console.print(f"{plan.recipe.name}: {method_of(plan)} of {plan.model.source}", style="bold")
    for line in _facts(plan):
        console.print(f"  {line}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("choice", "value", "bytes", "reason"):
        table.add_column(heading, justify="right" if heading == "bytes" else "left", no_wrap=heading != "reason")
    for choice in plan.choices:
        table.add_row(
            choice.key, shown(choice.value), size(choice.num_bytes) if choice.num_bytes else "", choice.reason
        )
    need, num_checkpoints = disk_need(plan)
    each = f"up to {plural(num_checkpoints, 'checkpoint')} of {size(plan.compute.checkpoint_bytes)}, export, logs"
    table.add_row("disk", "", size(need), f"estimated: {each}")
    for key, text, reason in _earlier_rows(plan, earlier):
        table.add_row(key, "", text, reason)
    console.print()
    console.print(table)
    if plan.parallelism.deepspeed is not None:
        console.print("\nDeepSpeed configuration:")
        console.print(json.dumps(plan.parallelism.deepspeed, indent=2))


def _earlier_rows(plan: Plan, earlier: EarlierRuns | None) -> list[tuple[str, str, str]]:
    """What earlier runs of this kind make of the estimates."""
    if earlier is None:
        return []
    runs, rows = plural(earlier.num_runs, "earlier run") + " like this on this machine", []
    if earlier.memory:
        needed = size(round(plan.compute.estimated_peak_bytes * earlier.memory))
        rows.append(("measured memory", needed, f"{runs}: {earlier.memory:.2f} of the estimate"))
    if earlier.time and plan.compute.estimated_step_s:
        expected = duration(plan.compute.estimated_step_s * earlier.time)
        rows.append(("measured time", "", f"{runs}: {earlier.time:.2f} of the estimate; a step takes {expected}"))
    return rows


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return count(value) if isinstance(value, int) else str(value)


def _facts(plan: Plan) -> list[str]:
    model, data, recipe = plan.model, plan.data, plan.recipe
    lines = [
        f"model       {count(model.num_params)} weights, {plural(model.num_layers, 'layer')} of {model.hidden_size}, "
        f"{model.model_type}, in {model.directory}"
    ]
    for name, split in (("training", data.train), ("validation", data.validation)):
        if split is None:
            continue
        samples = ""
        if name == "training" and recipe.packs:
            filled = split.num_tokens / max(1, split.num_samples * recipe.data.max_seq_len)
            samples = f", packed into {plural(split.num_samples, 'sequence')} ({percent(filled)} filled)"
        lines.append(
            f"{name:<12}{plural(split.num_rows, 'row')}{samples}, {plural(split.num_tokens, 'token')}, "
            f"{count(split.supervised_tokens)} of them supervised, longest row {count(split.longest_tokens)}"
        )
    if held_out := [f"{each.name} {count(each.validation_rows)}" for each in data.datasets if each.validation_rows]:
        lines.append(f"            validation rows by data set: {', '.join(held_out)}")
    outcomes = [
        (data.num_rejected, "rejected"),
        (data.num_dropped, "dropped"),
        (data.num_truncated, "truncated"),
        (data.num_duplicates, "duplicate"),
        (data.num_unselected, "unselected (beyond max_rows)"),
    ]
    counts = [f"{count(number)} {outcome}" for number, outcome in outcomes if number]
    if data.num_special:
        counts.append(f"{count(data.num_special)} with special tokens in their content")
    lines.append("rows        " + (", ".join(counts) if counts else "none rejected, dropped, truncated or duplicate"))
    longest = max(split.longest_tokens for split in (data.train, data.validation) if split is not None)
    if warning := positions_warning(recipe.data.max_seq_len, model.trained_positions, longest):
        lines.append(f"warning     {warning}")
    if data.omitted:
        lines.append(f"warning     the chat template omits {omissions(data.omitted)}")
    if data.tokenizer_not_compared:
        lines.append(f"warning     {data.tokenizer_not_compared}")
    return lines
