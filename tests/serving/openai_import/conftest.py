"""A Tunesmith server that stands in for the hosted API, with files and jobs to import."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

from running import serving

from tests.selection import needs
from tunesmith.serving.conformance.rows import as_jsonl, chat_rows

FINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Hosted:
    address: str
    client: OpenAI
    tuned_job: str
    failed_job: str
    cancelled_job: str


@pytest.fixture(scope="session")
@needs(group="hosted")
def hosted(tiny_llama, tmp_path_factory) -> Iterator[Hosted]:
    """Five files (one of another purpose), a result file and three finished jobs."""
    cache = tmp_path_factory.getbasetemp() / "tunesmith-cache"
    with serving(tmp_path_factory.mktemp("hosted"), tiny_llama, cache, name="gpt-tiny") as address:
        client = OpenAI(base_url=address, api_key="none")

        def upload(name: str, content: bytes, purpose: str = "fine-tune") -> str:
            return client.files.create(file=(name, content), purpose=purpose).id  # pyright: ignore[reportArgumentType]

        def create(file: str, **more) -> str:
            return client.fine_tuning.jobs.create(model="gpt-tiny", training_file=file, **more).id

        training, validation = (
            upload("train.jsonl", as_jsonl(chat_rows(12))),
            upload("v.jsonl", as_jsonl(chat_rows(3, 90))),
        )
        upload("big.jsonl", as_jsonl(chat_rows(9000)))
        upload("notes.txt", b"not for fine-tuning", "user_data")
        tuned = create(
            training,
            validation_file=validation,
            suffix="move me",
            seed=5,
            metadata={"team": "night"},
            hyperparameters={"n_epochs": 2, "batch_size": 4},
        )
        failed = create(upload("nine.jsonl", as_jsonl(chat_rows(9))))
        cancelled = create(training)
        client.fine_tuning.jobs.cancel(cancelled)
        statuses = [_final_status(client, id) for id in (tuned, failed, cancelled)]
        assert statuses == ["succeeded", "failed", "cancelled"]
        yield Hosted(address, client, tuned, failed, cancelled)


def _final_status(client: OpenAI, id: str) -> str:
    import time

    for _ in range(600):
        if (status := client.fine_tuning.jobs.retrieve(id).status) in FINAL:
            return status
        time.sleep(0.3)
    raise AssertionError(f"{id} does not finish")
