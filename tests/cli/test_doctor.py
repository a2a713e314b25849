"""`tunesmith doctor`: output, JSON and exit code."""

import json
import socket

from typer.testing import CliRunner

from tunesmith.cli.main import app


def run(*arguments: str, path: str):
    # Without programs of this machine: its Slurm controller and driver are not the subject.
    return CliRunner().invoke(app, ["doctor", *arguments], env={"PATH": path, "RAY_ADDRESS": ""})


def test_json_and_exit_code_follow_the_severity(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        broken = run("--json", "--path", str(tmp_path), "--port", port, path=str(tmp_path))
    document = json.loads(broken.stdout)
    assert broken.exit_code == 1
    assert document["version"] == 1
    assert document["counts"]["error"] == sum(finding["severity"] == "error" for finding in document["findings"])
    (finding,) = [finding for finding in document["findings"] if finding["check"] == "ports"]
    assert set(finding) == {"check", "severity", "what", "why", "what_to_do"}
    assert len({entry["check"] for entry in document["checks"]}) == len(document["checks"]) >= 13


def test_every_finding_is_shown_with_what_why_and_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        shown = run("--path", str(tmp_path), "--port", str(port), path=str(tmp_path)).stdout
    assert f"error: port {port} cannot be used: Address already in use\n  why: " in shown
    assert "  what to do: " in shown
    fixed = run("--json", "--path", str(tmp_path), "--port", str(port), path=str(tmp_path))
    assert not any(finding["check"] == "ports" for finding in json.loads(fixed.stdout)["findings"])
