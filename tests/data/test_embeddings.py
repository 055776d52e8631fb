"""Stored embeddings: `KEY.embedding.npy` is one finite vector of the width that is asked for."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.embeddings import MEMBER, read_vector
from svilm_fast.data.errors import EmbeddingError
from svilm_fast.data.loader import build_loader


def stored(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version, allow_pickle=True)
    return stream.getvalue()


VECTOR = np.array([0.5, -1.0, 2.0], np.float32)


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_vector_is_read_as_float32(dtype, version):
    found = read_vector(stored(VECTOR.astype(dtype), version), 3, "s")
    assert found.dtype == np.float32
    assert found.tolist() == VECTOR.tolist()


def _claims(shape: str, body: bytes = b"") -> bytes:
    """A file whose header states a shape and no more."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (stored(VECTOR[:2]), r"float32 \[2\] in 8 bytes, expected float16 or float32 \[3\]"),
        (stored(VECTOR[None]), r"float32 \[1 x 3\]"),
        (stored(np.float32(3)), "no dimension"),
        (stored(VECTOR.astype(np.float64)), "float64"),
        (stored(VECTOR.astype(">f4")), ">f4"),
        (stored(np.array(["a", None, 3], object)), r"object \[3\]"),
        (stored(VECTOR)[:-1], "in 11 bytes"),
        (stored(VECTOR) + b"x", "in 13 bytes"),
        (_claims("(3,)"), "in 0 bytes"),
        (_claims("(1000000000000,)"), "1000000000000"),
        (_claims("(__import__('os').getpid(),)"), "not a NumPy array file"),
        (_claims("(" * 300 + ")" * 300), "not a NumPy array file"),
        (stored(np.array([0, np.nan, 1], np.float16)), "not finite"),
        (stored(np.array([0, np.inf, 1], np.float32)), "not finite"),
        (b"", "not a NumPy array file"),
        (b"PK\3\4" + bytes(50), "not a NumPy array file"),
        (stored(VECTOR, (3, 0)), "not a NumPy array file"),
        (pickle.dumps([1.0, 2.0, 3.0]), "not a NumPy array file"),
    ],
)
def test_anything_else_is_refused_with_the_sample(data, message):
    with pytest.raises(EmbeddingError, match=rf"clip-7: embedding\.npy .*{message}"):
        read_vector(data, 3, "clip-7")


def _vector(number: int) -> np.ndarray:
    return np.arange(4, dtype=np.float16) + number


def _opened(folder, **settings):
    config = DataConfig(train=str(folder), **settings)
    return ClipDataset(
        config, "train", prepare_tokenizer(config), True, frames=2, image_size=16, embeddings=4
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_carry_them(make_shards, workers):
    replace = {n: {MEMBER: stored(_vector(n))} for n in range(6)}
    dataset = _opened(make_shards(6, replace=replace), workers=workers, unit=2)
    with build_loader(dataset.config, dataset, batch_size=4) as loader:
        batch = next(iter(loader))
    expected = np.stack([_vector(int(name[1:])) for name in batch.ids]).astype(np.float32)
    assert torch.equal(batch.embeddings, torch.from_numpy(expected))
    copied = pickle.loads(pickle.dumps(batch))
    joined = ClipBatch.joined([batch, copied])
    assert torch.equal(joined.embeddings, torch.cat([batch.embeddings] * 2))
    assert batch.to("meta").embeddings.device.type == "meta"


def test_a_sample_with_another_or_none_is_skipped_and_named(make_shards):
    replace = {n: {MEMBER: stored(_vector(n))} for n in range(6)}
    replace[1] = {}
    replace[4] = {MEMBER: stored(np.zeros(5, np.float32))}
    folder = make_shards(6, replace=replace)
    dataset = _opened(folder, workers=0)
    with build_loader(dataset.config, dataset, batch_size=2) as loader:
        batches = [batch for _, batch in zip(range(6), loader.forever())]
        skips = loader.skips.skipped
    assert {name for batch in batches for name in batch.ids} == {"s0000", "s0002", "s0003", "s0005"}
    assert skips["s0001"].message == "s0001: no member embedding.npy in its shard"
    assert "float32 [5]" in skips["s0004"].message
    config = dataset.config
    plain = ClipDataset(config, "train", prepare_tokenizer(config), frames=2, image_size=16)
    assert plain.batch([1]).embeddings is None
