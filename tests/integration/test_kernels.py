"""Complete runs with and without kernels, and with a faulty kernel."""

import pytest

from tests.event_lines import event_lines
from tests.warm_processes.pool import python_path
from tunesmith.report.page import write_report

# Imported by every Python process of the run at startup; only the worker gets the faulty kernel.
PLANT = """
import sys
if "tunesmith.training.worker" in sys.orig_argv:
    from tunesmith.kernels import dispatch, lora_block
    def wrong(hidden, norm, eps, offset, layers):
        return tuple(1.01 * t for t in lora_block.norm_lora_linears(hidden, norm, eps, offset, layers))
    planted = dispatch.Implementation("planted", wrong, lambda tensor: True)
    dispatch.TABLE["norm_lora_linears"].insert(0, planted)
"""
STEPS = {"epochs": 30, "max_steps": 50}


def losses_of(run) -> list[float]:
    return [event["loss"] for event in event_lines(run.events, "step")]


def test_losses_agree_with_and_without_kernels_and_a_faulty_kernel_is_disabled(project):
    sections = {"optimization": STEPS, "evaluation": {"every_steps": 100}, "checkpoint": {"every_steps": 100}}
    off = project.train(project.write("off.yaml", kernels="off", **sections), "off")
    auto = project.train(project.write("auto.yaml", **sections), "auto")
    assert len(losses_of(off)) == 50
    assert losses_of(off)[-1] < losses_of(off)[0] - 1.0
    assert losses_of(auto) == pytest.approx(losses_of(off), abs=1e-4)
    (event,) = event_lines(auto.events, "kernels")
    assert {"norm_lora_linears", "gated_lora_linear", "rope"} <= {item["operation"] for item in event["items"]}
    assert all(item["holds"] and item["difference"] <= item["tolerance"] for item in event["items"])
    (event,) = event_lines(off.events, "kernels")
    assert [item["operation"] for item in event["items"]] == ["linear_cross_entropy"]  # chunked also without kernels

    (project.directory / "plant").mkdir()
    (project.directory / "plant" / "sitecustomize.py").write_text(PLANT)
    path = python_path(project.directory / "plant")
    planted = project.train(project.directory / "auto.yaml", "planted", PYTHONPATH=path)
    (warning,) = [e for e in event_lines(planted.events, "warning") if e["code"] == "kernel_off"]
    assert "norm_lora_linears (planted) is disabled" in warning["message"]
    (event,) = event_lines(planted.events, "kernels")
    (wrong,) = [item for item in event["items"] if not item["holds"]]
    assert wrong["difference"] == pytest.approx(0.01, rel=0.2)
    assert losses_of(planted) == pytest.approx(losses_of(off), abs=1e-4)
    page = write_report(planted).read_text()
    assert "Difference from torch" in page
    assert "disabled" in page


def test_unknown_kernel_is_rejected(project):
    result = project.run("plan", project.write(kernels=["rms_norn"]))
    assert result.returncode == 2
    assert "kernels" in result.stderr
    assert "rms_norm" in result.stderr
    assert "Traceback" not in result.stderr
