"""Models that stand before any training."""

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.shapes import refused, require_shape


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
        refused(lambda n=name: bench.strict.models.retrieve(n), 404)
        refused(lambda n=name: bench.strict.models.delete(n), 404)


def _base_stays(bench: Bench) -> None:
    refused(lambda: bench.strict.models.delete(bench.base), (400, 401, 403))
    require_equal(bench.client.models.retrieve(bench.base).id, bench.base, "the base after it was not deleted")


CHECKS = (
    Check("models: list", "GET /models: id, created, object, owned_by", _listed),
    Check("models: retrieve", "GET /models/{id}, also where the id holds a `/`", _retrieved),
    Check("models: unknown", "an unknown model answers 404", _unknown),
    Check("models: base", "a base cannot be deleted", _base_stays),
)
