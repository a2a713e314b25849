"""The conformance suite with `tunesmith serve`: every check passes, with real training, and everything is removed."""

import json

import pytest
from openai import OpenAI
from running import free_port, run_cli

from tunesmith.serving.conformance.suite import CHECKS


@pytest.mark.slow
def test_every_check_holds(address):
    client = OpenAI(base_url=address, api_key="none")
    before = {model.id for model in client.models.list()}
    result = run_cli("conformance", address, "--json")
    *lines, counts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line for line in lines if line["outcome"] != "holds"] == []
    assert [line["check"] for line in lines] == [check.name for check in CHECKS]
    assert counts == {"counts": {"holds": len(CHECKS), "broken": 0, "not supported": 0, "left out": 0}}
    assert result.returncode == 0, result.stderr
    assert "not removed" not in result.stderr
    assert {model.id for model in client.models.list()} == before
    assert [file.id for file in client.files.list()] == []
    assert all(job.status in ("succeeded", "failed", "cancelled") for job in client.fine_tuning.jobs.list())


def test_names_of_checks_are_unique_and_every_check_has_a_description():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.line and ": " in check.name for check in CHECKS)


def test_an_unreachable_server_is_reported():
    result = run_cli("conformance", f"http://127.0.0.1:{free_port()}")
    assert result.returncode == 2
    assert "cannot reach the server" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_without_the_api_is_reported(address):
    result = run_cli("conformance", address.removesuffix("/v1") + "/nothing")
    assert result.returncode == 2
    assert "404" in result.stderr
    assert "Traceback" not in result.stderr
