"""Whole runs with and without kernels, and with one that computes wrong numbers."""

import os

import pytest

from tests.event_lines import event_lines
from tunesmith.report.page import write_report

# Read by every Python of the run at its start; only the worker gets the wrong kernel.
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


def test_fifty_steps_are_the_same_with_and_without_kernels_and_without_a_wrong_one(project):
    sections = {"optimization": STEPS, "evaluation": {"every_steps": 100}, "checkpoint": {"every_steps": 100}}
    off = project.train(project.write("off.yaml", kernels="off", **sections), "off")
    auto = project.train(project.write("auto.yaml", **sections), "auto")
    assert len(losses_of(off)) == 50
    assert losses_of(off)[-1] < losses_of(off)[0] - 1.0
    assert losses_of(auto) == pytest.approx(losses_of(off), abs=1e-4)
    (told,) = event_lines(auto.events, "kernels")
    assert {"norm_lora_linears", "gated_lora_linear", "rope"} <= {item["operation"] for item in told["items"]}
    assert all(item["holds"] and item["difference"] <= item["tolerance"] for item in told["items"])
    (told,) = event_lines(off.events, "kernels")
    assert [item["operation"] for item in told["items"]] == ["linear_cross_entropy"]  # in chunks, as ever

    (project.directory / "plant").mkdir()
    (project.directory / "plant" / "sitecustomize.py").write_text(PLANT)
    path = os.pathsep.join([str(project.directory / "plant"), *filter(None, [os.environ.get("PYTHONPATH")])])
    planted = project.train(project.directory / "auto.yaml", "planted", PYTHONPATH=path)
    (warning,) = [e for e in event_lines(planted.events, "warning") if e["code"] == "kernel_off"]
    assert "norm_lora_linears (planted) is switched off" in warning["message"]
    (told,) = event_lines(planted.events, "kernels")
    (wrong,) = [item for item in told["items"] if not item["holds"]]
    assert wrong["difference"] == pytest.approx(0.01, rel=0.2)
    assert losses_of(planted) == pytest.approx(losses_of(off), abs=1e-4)
    page = write_report(planted).read_text()
    assert "Difference from plain torch" in page
    assert "switched off" in page


def test_a_kernel_that_is_not_known_is_refused(project):
    ended = project.run("plan", project.write(kernels=["rms_norn"]))
    assert ended.returncode == 2
    assert "kernels" in ended.stderr
    assert "rms_norm" in ended.stderr
    assert "Traceback" not in ended.stderr
