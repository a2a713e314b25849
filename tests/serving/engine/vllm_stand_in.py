"""A server with the documented routes of vLLM and the command line of `vllm serve`; vLLM itself needs a GPU.

Responses are real: the embedded engine generates them. GET /test/facts returns the pending requests and the loaded
adapters.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from llguidance import grammar_from

from tunesmith.inference import rendering
from tunesmith.inference.grammar import Grammar
from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob
from tunesmith.serving.engine.client import EmbeddedEngine
from tunesmith.serving.engine.protocol import EngineRejected, EngineUnavailable

CONTEXT = 2048


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("subcommand", choices=["serve"])
    parser.add_argument("model", type=Path)
    for name in ("--served-model-name", "--host", "--generation-config", "--structured-outputs-config"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--max-lora-rank", "--max-loras", "--max-cpu-loras", "--max-num-seqs"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--enable-lora", action="store_true", required=True)
    parser.add_argument("--fail-at-start", action="store_true")
    return parser.parse_args()


def failed(status: int, message: str, param: str | None = None) -> JSONResponse:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": status}
    return JSONResponse({"error": error}, status)


def make_app(options: argparse.Namespace) -> FastAPI:
    engine = EmbeddedEngine()
    adapters: dict[str, str] = {}

    @asynccontextmanager
    async def lifespan(_app: FastAPI):
        yield
        await engine.close()

    app = FastAPI(lifespan=lifespan)

    @app.middleware("http")
    async def key(request: Request, call_next):
        expected = f"Bearer {os.environ.get('VLLM_API_KEY')}"
        if request.url.path.startswith("/v1") and request.headers.get("authorization") != expected:
            return JSONResponse({"error": "Unauthorized"}, 401)
        return await call_next(request)

    @app.get("/health")
    def health() -> PlainTextResponse:
        return PlainTextResponse("")

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        cards = [
            {"id": options.served_model_name, "root": str(options.model), "parent": None, "max_model_len": CONTEXT}
        ]
        cards += [{"id": name, "root": path, "parent": options.served_model_name} for name, path in adapters.items()]
        return {"object": "list", "data": cards}

    @app.post("/v1/load_lora_adapter")
    async def load(body: dict[str, Any]):
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True":
            return failed(404, "Not Found")
        if body["lora_name"] in adapters:
            return failed(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        config = json.loads((Path(body["lora_path"]) / "adapter_config.json").read_text())
        if config.get("use_dora"):
            return failed(500, "vLLM does not yet support DoRA.")
        if config["r"] > options.max_lora_rank:
            return failed(500, f"LoRA rank {config['r']} is greater than max_lora_rank {options.max_lora_rank}.")
        adapters[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: dict[str, Any]):
        if (path := adapters.pop(body["lora_name"], None)) is None:
            return failed(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        await engine.unload(Path(path))
        return PlainTextResponse(f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")

    @app.get("/test/facts")
    async def facts() -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "pending": len(engine._connection.inboxes) if engine._connection else 0,
            "adapters": adapters,
        }

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any], request: Request):
        name = body["model"]
        if name != options.served_model_name and name not in adapters:
            return failed(404, f"The model `{name}` does not exist.", "model")
        target = Target(options.model, Path(adapters[name]) if name in adapters else None)
        tokenizer = rendering.tokenizer_of(options.model)
        if body.get("echo"):
            logprobs = await engine.prompt_logprobs(target, body["prompt"], body["logprobs"])
            return {"choices": [{"index": 0, "text": "", "logprobs": named(logprobs, body["prompt"][:1])}]}
        if len(body["prompt"]) + body["max_tokens"] > CONTEXT:
            return failed(400, f"This model's maximum context length is {CONTEXT} tokens.", "input_tokens")
        pieces = engine.generate(target, body["prompt"], sampling(body))
        try:
            first = await first_of(pieces, request)
        except EngineRejected as rejected:
            return failed(400, rejected.message)
        if first is None:
            return failed(499, "The client disconnected.")
        return StreamingResponse(stream(first, pieces, body, tokenizer), media_type="text/event-stream")

    return app


async def first_of(pieces: AsyncGenerator[Chunk, None], request: Request) -> Chunk | None:
    """The first chunk; None if the client disconnects first, which cancels the request, as in vLLM."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    first, disconnect = asyncio.ensure_future(anext(pieces)), asyncio.ensure_future(disconnected())
    await asyncio.wait((first, disconnect), return_when=asyncio.FIRST_COMPLETED)
    disconnect.cancel()
    if first.done():
        return first.result()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await pieces.aclose()
    return None


def sampling(body: dict[str, Any]) -> Sampling:
    assert body["stream"]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0, 1)
    grammar = (body.get("structured_outputs") or {}).get("grammar")
    return Sampling(
        max_new_tokens=body["max_tokens"],
        **{name: body[name] for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")},
        stop=tuple(body["stop"]),
        logprobs=body.get("logprobs"),
        logit_bias={int(token): bias for token, bias in (body["logit_bias"] or {}).items()},
        grammar=None if grammar is None else Grammar(grammar_from("grammar", grammar)),  # as vLLM's backend converts it
    )


async def stream(
    first: Chunk, pieces: AsyncGenerator[Chunk, None], body: dict[str, Any], tokenizer
) -> AsyncGenerator[str, None]:
    """Events as in vLLM, whose tokens include the stop token and those of a stop string."""
    piece: Chunk | None = first
    count = 0
    async with aclosing(pieces):
        try:
            while piece is not None:
                tokens, logprobs, stopped = list(piece.token_ids), list(piece.logprobs), None
                count += len(tokens)
                if piece.finish is not None and count < piece.completion_tokens:  # a stop string cut off their text
                    extra = [tokenizer.encode(body["stop"][0])[0]] * (piece.completion_tokens - count)
                    stopped = body["stop"][0]
                elif piece.finish == "stop":
                    extra = [tokenizer.stop_token_ids[0]]
                else:
                    extra = []
                tokens += extra
                if body.get("logprobs") is not None:
                    logprobs += [TokenLogprob(token, "", -0.5) for token in extra]
                tokens_logprobs = None if body.get("logprobs") is None else named(logprobs)
                choice = {"index": 0, "text": piece.text, "token_ids": tokens, "logprobs": tokens_logprobs}
                choice |= {"finish_reason": piece.finish, "stop_reason": stopped}
                yield f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"
                piece = None if piece.finish else await anext(pieces)
        except EngineUnavailable as unavailable:
            error = {"message": str(unavailable), "type": "InternalServerError", "param": None, "code": 500}
            yield f"data: {json.dumps({'error': error})}\n\n"
    yield "data: [DONE]\n\n"


def named(logprobs: list[TokenLogprob], before: list[int] | None = None) -> dict[str, Any]:
    first = [f"token_id:{token}" for token in before or []]
    top = [
        {f"token_id:{one.token_id}": one.logprob, **{f"token_id:{token}": value for token, _, value in one.top}}
        for one in logprobs
    ]
    return {
        "tokens": [*first, *(f"token_id:{one.token_id}" for one in logprobs)],
        "token_logprobs": [*(None for _ in first), *(one.logprob for one in logprobs)],
        "top_logprobs": [*(None for _ in first), *top],
        "text_offset": [],
    }


if __name__ == "__main__":
    chosen = arguments()
    if chosen.fail_at_start:
        sys.exit("no GPU found")
    uvicorn.run(make_app(chosen), host=chosen.host, port=chosen.port, log_level="warning")
