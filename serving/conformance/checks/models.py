"""Base models."""

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.shapes import expect_error, require_shape


def _listed(bench: Bench) -> None:
    models = list(bench.client.models.list())
    for model in models:
        require_shape(model)
    require(bench.base in {model.id for model in models}, f"{bench.base!r} is not in the list of models")


def _retrieved(bench: Bench) -> None:
    model = bench.client.models.retrieve(bench.base)
    require_shape(model)
    require_equal((model.id, model.object), (bench.base, "model"), "id and object")


def _unknown(bench: Bench) -> None:
    for name in ("no-such-model-anywhere", "ft:no-such:org::12345678"):
        expect_error(lambda n=name: bench.strict.models.retrieve(n), 404)
        expect_error(lambda n=name: bench.strict.models.delete(n), 404)


def _base_stays(bench: Bench) -> None:
    expect_error(lambda: bench.strict.models.delete(bench.base), (400, 401, 403))
    require_equal(bench.client.models.retrieve(bench.base).id, bench.base, "the base model after a rejected delete")


CHECKS = (
    Check("models: list", "GET /models: id, created, object, owned_by", _listed),
    Check("models: retrieve", "GET /models/{id}, also if the id contains a `/`", _retrieved),
    Check("models: unknown", "an unknown model returns 404", _unknown),
    Check("models: base", "a base model cannot be deleted", _base_stays),
)
