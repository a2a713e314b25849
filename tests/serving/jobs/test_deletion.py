"""Deleting tuned models and files of jobs: permissions, what is deleted, and what is kept."""

import time
from collections.abc import Iterator

import openai
import pytest

from tests.serving.jobs.whole_server import LONG, SHORT, WholeServer
from tests.waiting import wait_for

MESSAGES = [{"role": "user", "content": "Question 1: what about my invoice?"}]


@pytest.fixture(scope="module")
def server(tiny_llama, tmp_path_factory) -> Iterator[WholeServer]:
    """A server whose default key belongs to the organization `one` and has all scopes."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "tunesmith-cache"))
    server = WholeServer(tmp_path_factory.mktemp("server"), bases={"tiny": str(tiny_llama)})
    server.key = server.keys("create", "one", "--organization", "one").split()[-1]
    yield server.start()
    server.cancel_all()
    server.stop()
    patch.undo()


@pytest.fixture(scope="module")
def done(server, chat_rows):
    return server.wait_until(server.create(server.upload(chat_rows[:24]), SHORT), "succeeded")


def test_only_the_owner_can_delete_a_model(server, done):
    other = server.keys("create", "two", "--organization", "two").split()[-1]
    reader = server.keys("create", "reader", "--organization", "one", "--scope", "models:read").split()[-1]
    with pytest.raises(openai.NotFoundError):
        server.client(other).models.delete(done.fine_tuned_model)
    with pytest.raises(openai.PermissionDeniedError):
        server.client(reader).models.delete(done.fine_tuned_model)
    with pytest.raises(openai.PermissionDeniedError):
        server.client().models.delete("tiny")
    assert server.client().models.retrieve(done.fine_tuned_model).parent == "tiny"


def test_a_model_used_by_an_unfinished_job_cannot_be_deleted(server, done, many_chat_rows):
    model, file = done.fine_tuned_model, server.upload(many_chat_rows[:300])
    job = server.jobs.create(model=model, training_file=file, hyperparameters=LONG).id
    server.wait_until(job, "running")
    with pytest.raises(openai.BadRequestError) as raised:
        server.client().models.delete(model)
    assert raised.value.code == "model_in_use"
    checkpoint = wait_for(lambda: list(server.jobs.checkpoints.list(job)))[0].fine_tuned_model_checkpoint
    assert server.client().models.delete(checkpoint).deleted  # of a running job: it is not created again
    deleted_at = time.time()
    wait_for(lambda: any(c.created_at > deleted_at for c in server.jobs.checkpoints.list(job, limit=100)))
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve(checkpoint)
    server.jobs.cancel(job)


def test_deleting_a_model_keeps_its_job(server, done):
    """A response in progress is completed."""
    name, client = done.fine_tuned_model, server.client(max_retries=5)
    request = {"model": name, "messages": MESSAGES, "max_tokens": 300, "temperature": 0}
    expected = client.chat.completions.create(**request).choices[0]
    stream = client.chat.completions.create(**request, stream=True)
    chunks = [next(stream)]
    assert client.models.delete(name).deleted
    chunks += list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.message.content
    assert chunks[-1].choices[0].finish_reason == expected.finish_reason

    for deleted in (name, f"{name}:ckpt-step-12", f"{name}:ckpt-step-6"):
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(**{**request, "model": deleted})
        assert raised.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(deleted)
    with pytest.raises(openai.NotFoundError):
        client.models.delete(name)
    assert name not in [model.id for model in client.models.list()]
    assert not server.run_of(done.id).export.exists()
    assert not list((server.home / "jobs" / done.id / "checkpoints").glob("step-*"))

    job = server.jobs.retrieve(done.id)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", name, done.trained_tokens)
    assert server.event_steps(done.id) == list(range(1, 13))
    assert client.files.content(job.result_files[0]).text.startswith("step,")
    with pytest.raises(openai.BadRequestError) as raised:
        server.jobs.create(model=name, training_file=done.training_file)
    assert raised.value.param == "model"


def test_files_of_unfinished_jobs_cannot_be_deleted(server, many_chat_rows):
    first_file, second_file = server.upload(many_chat_rows), server.upload(many_chat_rows)
    first, second = server.create(first_file, LONG), server.create(second_file, LONG)
    server.wait_until(first, "running")
    server.wait_until(second, "queued")  # max_jobs is 1
    for file in (first_file, second_file):
        with pytest.raises(openai.BadRequestError) as raised:
            server.client().files.delete(file)
        assert raised.value.code == "file_in_use"
    for job in (second, first):
        server.jobs.cancel(job)
    blobs = server.blobs()
    for file in (first_file, second_file):
        assert server.client().files.delete(file).deleted
    assert len(server.blobs()) == len(blobs) - 2
    assert server.jobs.retrieve(first).training_file == first_file
