"""Fair queuing, a full KV cache, and adapters that do not fit."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import openai
import pytest
from safetensors.torch import load_file, save_file

from tunesmith.rundir.commit import seal
from tunesmith.serving.engine.fair_queue import FairQueue


@dataclass
class Item:
    caller: str
    number: int


def test_the_queue_alternates_between_callers():
    queue = FairQueue[Item]()
    for number in range(4):
        queue.add(Item("many", number))
    queue.add(Item("one", 0))
    order = [queue.next(lambda _: True) for _ in range(5)]
    assert [(item.caller, item.number) for item in order if item] == [
        ("many", 0),
        ("one", 0),
        ("many", 1),
        ("many", 2),
        ("many", 3),
    ]
    assert queue.next(lambda _: True) is None
    queue.add(Item("a", 1))
    queue.put_back(Item("b", 0))
    assert queue.next(lambda item: item.caller == "a") is None  # no item overtakes
    assert queue.next(lambda _: True) == Item("b", 0)
    assert [item.caller for item in queue.remove(lambda item: item.number == 1)] == ["a"]
    assert len(queue) == 0


def test_preemption_and_invalid_adapters_do_not_affect_other_requests(serve, models, copied):
    incompatible = copied(models["ft-all"][1])
    config = json.loads((incompatible / "adapter_config.json").read_text())
    (incompatible / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    damaged = copied(models["ft-attention"][1])
    weights = load_file(damaged / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, damaged / "adapter_model.safetensors")
    export = copied(models["ft-scaled"][1])
    seal(export)
    with open(export / "adapter_model.safetensors", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x01\x02")
    named = {
        **models,
        "export": (models["base"][0], export),
        "incompatible": (models["base"][0], incompatible),
        "damaged": (models["base"][0], damaged),
    }
    with serve(named, options={"cache_tokens": 700, "max_places": 8}) as small:
        client = small.client()

        def ask(number: int) -> str:
            response = client.chat.completions.create(
                model=["base", "ft-all"][number % 2],
                messages=[{"role": "user", "content": f"Question {number}"}],
                max_completion_tokens=200,
                temperature=1,
                seed=number,
            )
            return response.choices[0].message.content

        alone = [ask(number) for number in range(6)]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, range(6))) == alone
        assert len(set(alone)) == 6
        with pytest.raises(openai.BadRequestError, match="modules_to_save"):
            client.chat.completions.create(model="incompatible", messages=[{"role": "user", "content": "hello"}])
        with pytest.raises(
            openai.BadRequestError, match=r"adapter_model\.safetensors does not match its hash"
        ) as caught:
            client.chat.completions.create(model="export", messages=[{"role": "user", "content": "hello"}])
        assert "export it again from its checkpoint" in str(caught.value)
        with ThreadPoolExecutor(1) as pool:
            concurrent = pool.submit(ask, 1)
            with pytest.raises(openai.BadRequestError, match="NaN"):
                client.chat.completions.create(model="damaged", messages=[{"role": "user", "content": "hello"}])
            assert concurrent.result() == alone[1]
        assert ask(0) == alone[0]
