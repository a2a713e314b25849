"""Messages between the API and the inference process, byte for byte: their versions may differ while a server is being
updated."""

import json
from pathlib import Path

from tunesmith.inference.grammar import json_grammar
from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob
from tunesmith.serving.engine.frames import encode
from tunesmith.serving.engine.wire import (
    chunk_from_json,
    chunk_to_json,
    sampling_from_json,
    sampling_to_json,
    target_from_json,
    target_to_json,
)

SAMPLING = Sampling(
    max_new_tokens=7,
    temperature=0.5,
    top_p=0.9,
    stop=("a", "é"),
    seed=3,
    logprobs=2,
    presence_penalty=1.0,
    frequency_penalty=-0.5,
    logit_bias={5: -1.0},
    grammar=json_grammar({"type": "boolean"}),
)
SCHEMA = (
    r"{\"type\": \"boolean\", \"x-guidance\": "
    r"{\"whitespace_pattern\": \"( |\\\\n {0,24})?\", \"lenient\": false}}"
)


def body(message: dict) -> str:
    return encode(message)[4:].decode()


def test_sampling_parameters_keep_their_json():
    assert body(sampling_to_json(SAMPLING)) == (
        '{"max_tokens":7,"temperature":0.5,"top_p":0.9,"stop":["a","é"],"seed":3,"logprobs":2,"presence_penalty":1.0,'
        '"frequency_penalty":-0.5,"logit_bias":{"5":-1.0},"form":{"grammar":"start: %json '
        f'{SCHEMA}\\n","schemas":[["response_format","response_format","{SCHEMA}"]]}}}}'
    )
    assert body(sampling_to_json(Sampling(temperature=1.0, seed=None))) == (
        '{"max_tokens":null,"temperature":1.0,"top_p":1.0,"stop":[],"seed":null,"logprobs":null,'
        '"presence_penalty":0.0,"frequency_penalty":0.0,"logit_bias":{},"form":null}'
    )


def test_chunks_and_targets_keep_their_json():
    chunk = Chunk("x", (1,), (TokenLogprob(1, "x", -0.5, ((1, "x", -0.5),)),), "stop", 2)
    assert body({"piece": chunk_to_json(chunk)}) == (
        '{"piece":{"text":"x","token_ids":[1],"logprobs":[{"token_id":1,"text":"x","logprob":-0.5,'
        '"top":[[1,"x",-0.5]]}],"finish":"stop","completion_tokens":2}}'
    )
    assert body(target_to_json(Target(Path("/b")))) == '{"base":"/b","adapter":""}'


def test_messages_survive_a_round_trip():
    chunk = Chunk("x", (1,), (TokenLogprob(1, "x", -0.5, ((1, "x", -0.5),)),), "stop", 2)
    target = Target(Path("/b"), Path("/a"))
    assert sampling_from_json(json.loads(body(sampling_to_json(SAMPLING)))) == SAMPLING
    assert sampling_from_json(json.loads(body(sampling_to_json(Sampling())))) == Sampling()
    shown = Sampling(shown_tokens=(5, 9))
    assert sampling_from_json(json.loads(body(sampling_to_json(shown)))) == shown
    assert chunk_from_json(json.loads(body(chunk_to_json(chunk)))) == chunk
    assert target_from_json(json.loads(body(target_to_json(target)))) == target
