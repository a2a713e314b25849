"""Names of tuned models, which clients split on `:` and use in paths; ids; settings."""

import pytest

from tunesmith.errors import InputError
from tunesmith.serving.names import checkpoint_name, is_id, make_id, make_tuned_name, parse_tuned_name
from tunesmith.serving.settings import load_settings


@pytest.mark.parametrize("suffix", [None, "", "my suffix: ä/b", "x" * 64])
def test_a_name_splits_into_its_parts(suffix):
    name = make_tuned_name("HuggingFaceTB/SmolLM2-135M", "local", suffix)
    kind, base, organization, shown, unique = name.split(":")
    assert (kind, base, organization, len(unique)) == ("ft", "HuggingFaceTB--SmolLM2-135M", "local", 8)
    assert "/" not in name
    assert bool(shown) == bool(suffix)
    parsed = parse_tuned_name(checkpoint_name(name, 12))
    assert parsed is not None
    assert (parsed.base, parsed.suffix, parsed.step, parsed.model) == (base, shown, 12, name)


@pytest.mark.parametrize("name", ["tiny", "ft:a:b:c", "ft:a/b:o::abcd1234", "ft:a:o::abcd1234:ckpt-step-x", "ft:::"])
def test_other_names_are_not_parsed(name):
    assert parse_tuned_name(name) is None


def test_ids_are_random_and_safe_in_paths():
    ids = {make_id("file-") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_id(id) and len(id) == 29 for id in ids)
    assert not [bad for bad in ("../x", "file-a/b", "file-..", "", "file-", "file-abc\0defgh") if is_id(bad)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bases: {'a:b': .}", "is not a valid name"),
        ("bases: {a/b: ., a--b: .}", "same name"),
        ("bases: {a: nowhere}", "does not exist"),
        ("tls_cert: server.yaml", "certificate and its key"),
        ("port: 70000", "port"),
        ("organization: 'a:b'", "organization"),
        ("hst: 1", "no such key"),
    ],
)
def test_invalid_settings_are_reported(tmp_path, text, message):
    path = tmp_path / "server.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_settings(path)


def test_paths_are_relative_to_the_settings_file(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("home: h\nbases: {a: .}\nfiles_url: s3://bucket/x\n")
    settings = load_settings(path, {"port": 5, "host": None, "bases": {"b": str(tmp_path)}})
    assert settings.home == tmp_path / "h"
    assert settings.bases == {"a": tmp_path, "b": tmp_path}
    assert (settings.port, settings.host, settings.blobs_url) == (5, "127.0.0.1", "s3://bucket/x")
