import json

import numpy as np
import pytest

from tunesmith.data.index.token_index import IndexWriter, TokenIndex, write_index
from tunesmith.errors import RunFault

DOCUMENTS = [([5, 6, 7], [True, True, False], 3), ([8, 9], [False, True], 4), ([1, 2, 3, 4], [True] * 4, 4)]


def test_documents_are_read_back_unchanged(tmp_path):
    index = write_index(tmp_path / "i", DOCUMENTS, max_seq_len=8, fingerprint="f")
    assert (index.num_samples, index.num_documents, index.num_tokens) == (3, 3, 9)
    assert (index.max_seq_len, index.fingerprint) == (8, "f")
    for number, (tokens, supervised, row) in enumerate(DOCUMENTS):
        for sample in (index.sample(number), index.document(number)):
            assert sample.tokens.dtype == np.uint32
            assert sample.supervised.dtype == np.bool_
            assert sample.tokens.tolist() == tokens
            assert sample.supervised.tolist() == [False, *supervised[1:]]
            assert (sample.lengths, sample.rows) == ([len(tokens)], [row])


def test_the_first_token_of_a_document_is_never_a_target(tmp_path):
    index = write_index(tmp_path / "i", DOCUMENTS, max_seq_len=8)
    assert index.supervised_tokens == 1 + 1 + 3
    assert index.sample_supervised[:].tolist() == [1, 1, 3]


def test_packed_samples_contain_their_documents_in_order(tmp_path):
    index = write_index(tmp_path / "i", DOCUMENTS, max_seq_len=8, bins=[1, 0, 1])
    assert index.num_samples == 2
    sample = index.sample(1)
    assert sample.tokens.tolist() == [5, 6, 7, 1, 2, 3, 4]
    assert sample.supervised.tolist() == [False, True, False, False, True, True, True]
    assert (sample.lengths, sample.rows) == ([3, 4], [3, 4])
    assert index.sample_tokens[:].tolist() == [2, 7]
    assert index.sample_supervised[:].tolist() == [1, 4]


@pytest.mark.parametrize("name", ["tokens.u32", "supervised.u8", "document_offsets.i64", "sample_documents.i64"])
def test_a_file_of_the_wrong_size_is_named_in_the_error(tmp_path, name):
    write_index(tmp_path / "i", DOCUMENTS, max_seq_len=8)
    path = tmp_path / "i" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFault, match=name):
        TokenIndex.open(tmp_path / "i")


def test_a_missing_or_newer_index_is_an_error(tmp_path):
    with pytest.raises(RunFault, match="cannot be read"):
        TokenIndex.open(tmp_path / "nothing")
    write_index(tmp_path / "i", DOCUMENTS, max_seq_len=8)
    facts = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps({**facts, "schema": 99}))
    with pytest.raises(RunFault, match="schema 99"):
        TokenIndex.open(tmp_path / "i")


def test_inconsistent_arrays_raise_value_error(tmp_path):
    writer = IndexWriter(tmp_path / "i")
    with pytest.raises(ValueError, match="do not match"):
        writer.add(np.arange(3), np.zeros(3), np.array([2]), np.array([0]))
    with pytest.raises(ValueError, match="no tokens"):
        writer.add(np.arange(3), np.zeros(3), np.array([3, 0]), np.array([0, 1]))
    writer.add(np.arange(3), np.zeros(3), np.array([1, 2]), np.array([0, 1]))
    with pytest.raises(ValueError, match="every sample a document"):
        writer.finish(np.array([0, 2]), max_seq_len=8, fingerprint="")


def test_samples_and_documents_out_of_range_raise_index_error(tmp_path):
    index = write_index(tmp_path / "i", DOCUMENTS, max_seq_len=8)
    for read in (index.sample, index.document):
        for number in (-1, 3):
            with pytest.raises(IndexError):
                read(number)
