"""The speed of bf16 and fp32 products is measured once per kind of CPU, bf16 never without its instructions."""

import pytest

from tunesmith.launcher import product_rates as module
from tunesmith.launcher.product_rates import ProductRates, product_rates

CPUINFO = "processor\t: 0\nvendor_id\t: X\nmodel name\t: {}\nflags\t\t: avx2\n\nprocessor\t: 1\nmodel name\t: other\n"
AMX = frozenset({"amx_bf16"})


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """measure(model, rates) -> (result, number of measurements): for a CPU of this name."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))

    def run(model: str, rates: ProductRates | None, flags=AMX, **options):
        cpuinfo, measured = tmp_path / "cpuinfo", []
        cpuinfo.write_text(CPUINFO.format(model))
        monkeypatch.setattr(module, "_measured", lambda has_bf16: measured.append(has_bf16) or rates)
        return product_rates(flags, cpuinfo, **options), len(measured)

    return run


def test_each_kind_of_cpu_is_measured_once(measure):
    first, second = ProductRates(100.0, 400.0), ProductRates(90.0, 50.0)
    assert measure("A", first) == (first, 1)
    assert measure("A", second) == (first, 0)
    assert measure("B", second) == (second, 1)
    assert measure("B", first) == (second, 0)


def test_rates_that_are_not_needed_are_read_from_the_cache_only(measure):
    rates = ProductRates(100.0, 0.0)
    old = frozenset({"avx2", "avx512f"})
    assert measure("A", rates, old, measure=False) == (None, 0)
    assert measure("A", rates, old) == (rates, 1)
    assert measure("A", ProductRates(1.0, 1.0), old, measure=False) == (rates, 0)


def test_a_damaged_entry_is_measured_again(measure, tmp_path):
    rates = ProductRates(100.0, 400.0)
    measure("A", rates)
    (kept,) = (tmp_path / "cache" / "product-rates").iterdir()
    for damaged in ("", "{", "[1, 2]", '{"fp32": 1.0}'):
        kept.write_text(damaged)
        assert measure("A", rates) == (rates, 1)


def test_a_failed_measurement_is_not_kept(measure, monkeypatch):
    assert measure("A", None) == (None, 1)
    assert measure("A", ProductRates(1.0, 2.0)) == (ProductRates(1.0, 2.0), 1)


def test_a_cache_that_cannot_be_written_is_no_error(measure, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert measure("A", ProductRates(1.0, 2.0)) == (ProductRates(1.0, 2.0), 1)


@pytest.mark.parametrize("query", ["raise SystemExit(1)", "print('no numbers')", "print([1.0])"])
def test_a_measurement_that_fails_gives_no_rates(monkeypatch, query):
    monkeypatch.setattr(module, "QUERY", query)
    assert module._measured(has_bf16=True) is None


@pytest.mark.slow
def test_this_cpu_is_measured_with_the_installed_torch():
    rates = module._measured(has_bf16=True)
    assert rates is not None
    assert 0.1 < rates.fp32 < 1e4
    assert 0.01 < rates.bf16 < 1e5
    rates = module._measured(has_bf16=False)
    assert rates is not None
    assert 0.1 < rates.fp32 < 1e4
    assert rates.bf16 == 0
