"""A few training steps of the real SmolLM2 through `tunesmith serve`."""

import os
import signal
import subprocess
import sys

import httpx
import pytest
from openai import OpenAI

from tests.serving.jobs.service import FINAL
from tests.waiting import wait_for


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_learns_a_few_answers(smollm2, tmp_path, chat_rows, free_port, monkeypatch):
    arguments = [
        "serve",
        "--home",
        str(tmp_path / "server"),
        "--port",
        str(free_port),
        "--base",
        f"org/smollm2={smollm2}",
    ]
    with open(tmp_path / "serve.log", "wb") as log:
        command = [sys.executable, "-P", "-m", "tunesmith.cli.main", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        wait_for(lambda: is_ready(free_port))
        client = OpenAI(api_key="none", base_url=f"http://127.0.0.1:{free_port}/v1")
        rows = "".join(f'{{"prompt": "Question {n}?", "completion": " Answer {n}."}}\n' for n in range(12))
        file = client.files.create(file=("few.jsonl", rows.encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="org/smollm2", training_file=file.id, suffix="few", seed=1,
            hyperparameters={"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 5},
        )  # fmt: skip
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).status in FINAL, timeout_s=400, every_s=0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model.startswith("ft:org--smollm2:local:few:")
        losses = [e.data["train_loss"] for e in client.fine_tuning.jobs.list_events(job.id) if e.type == "metrics"][
            ::-1
        ]
        assert len(losses) == 4
        assert losses[-1] < losses[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.HTTPError:
        return False
