import os
import signal
import time
from threading import Thread

import pytest

from tunesmith.data.encoders.language_model import LanguageModelEncoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index import workers
from tunesmith.data.readers import lines
from tunesmith.data.readers.sources import cut
from tunesmith.errors import InputError, RunFault


@pytest.fixture
def shards(write_jsonl, chat_rows, monkeypatch):
    monkeypatch.setattr(lines, "SHARD_BYTES", 2000)
    monkeypatch.setattr(workers, "INLINE_BYTES", 0)
    monkeypatch.setattr(workers, "MAX_THREADS", 1)
    return list(cut(write_jsonl("a.jsonl", chat_rows)))


def contents(paths):
    return [(path / name).read_bytes() for path in paths for name in ("tokens.u32", "supervised.u8", "rows.npy")]


def test_processes_and_threads_give_the_same_result(tiny, shards, tmp_path):
    encoder, finished = LanguageModelEncoder(tiny, EncodingSpec("chat", 256)), []
    by_processes = workers.prepare_shards(shards, encoder, tmp_path / "a", 2, finished.append)
    by_threads = workers.prepare_shards(shards, encoder, tmp_path / "b", 1, lambda shard: None)
    assert finished == shards
    assert contents(by_processes) == contents(by_threads)
    assert os.environ.get("TOKENIZERS_PARALLELISM") == "false"  # as set by the tests


def test_an_input_error_in_a_process_reaches_the_caller(tiny, shards, tmp_path):
    with open(shards[0].path, "a") as file:
        file.write("more\n")
    with open(shards[0].path, "r+b") as file:
        file.write(b"{ ")
    with pytest.raises(InputError, match="changed while"):
        workers.prepare_shards(
            shards, LanguageModelEncoder(tiny, EncodingSpec("chat", 256)), tmp_path / "a", 2, lambda shard: None
        )


def test_a_killed_process_is_reported_and_the_others_exit(tiny, shards, tmp_path, monkeypatch):
    started = []
    start = workers._Worker.__init__

    def remember(self, *arguments):
        start(self, *arguments)
        started.append(self.process)

    monkeypatch.setattr(workers._Worker, "__init__", remember)

    def kill_one():
        while len(started) < 2:
            time.sleep(0.01)
        os.kill(started[0].pid, signal.SIGKILL)

    killer = Thread(target=kill_one)
    killer.start()
    with pytest.raises(RunFault, match="by signal 9"):
        workers.prepare_shards(
            shards, LanguageModelEncoder(tiny, EncodingSpec("chat", 256)), tmp_path / "a", 2, lambda shard: None
        )
    killer.join()
    assert all(process.poll() is not None for process in started)
