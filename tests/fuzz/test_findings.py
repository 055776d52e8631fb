"""Inputs on which the fuzzer once found faults."""

import pytest
from hypothesis import strategies as st

from svilm_fast.data import files
from svilm_fast.data.decode_process import memory_limit
from svilm_fast.data.errors import ShardError
from svilm_fast.data.shards import Entry, ShardReader
from tests.fuzz.engine import try_one
from tests.fuzz.targets import TARGETS

INDEX = b'{"version": 1, "bytes": 10240, "samples": {"s0": {"mp4": [%s, 40, 228994620]}}}'
FINDINGS = {
    "a position in an index that is infinite": ("index", INDEX % b"Infinity"),
    "a position in an index that is no number": ("index", INDEX % b"NaN"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_hostile_inputs_are_refused(name):
    name, value = FINDINGS[name]
    TARGETS[name].prepare()
    assert try_one(TARGETS[name], value)


@pytest.mark.parametrize("offset", [2**50, 2**63 - 1])
def test_a_position_that_no_file_has(tmp_path, offset):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"x")
    with pytest.raises(ShardError):
        ShardReader().read(str(path), Entry(offset, 5), "x", 10)


@pytest.mark.parametrize("caption", ["the S", "\ufeff\ufeff"])
def test_odd_captions_are_read(caption):
    TARGETS["captions"].prepare()
    assert not try_one(TARGETS["captions"], caption)


def test_a_small_file_takes_no_memory_for_its_limit(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"video,caption\n")
    with memory_limit(1 << 30):
        assert files.read_bytes(str(path), 1 << 32) == path.read_bytes()


@pytest.mark.parametrize("size", [0, 9, 10])
def test_a_file_up_to_its_limit_is_read(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    assert files.read_bytes(str(path), 10) == bytes(size)


def test_strategies_are_not_empty():
    for target in TARGETS.values():
        assert isinstance(target.strategy, st.SearchStrategy)
        assert not target.strategy.is_empty
