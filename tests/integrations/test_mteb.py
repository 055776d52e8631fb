"""The encoder for mteb embeds the batches of a made-up video task as the model does."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import svilm_fast
from svilm_fast.core.errors import UserError
from svilm_fast.data.sampling import choose_frames
from svilm_fast.inference.clips import centre_crop
from svilm_fast.integrations.mteb import VideoTextEncoder, mteb_encoder

TEXTS = ["a red circle", "a green square", "a blue star"]


class Decoder:
    """A video with the methods of torchcodec's decoder that are used; counts decoded frames."""

    def __init__(self, frames: torch.Tensor) -> None:
        self.frames = frames
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return len(self.frames)

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        self.decoded += indices
        return SimpleNamespace(data=self.frames[indices])


@pytest.fixture(scope="module")
def encoder(exported) -> VideoTextEncoder:
    return VideoTextEncoder(svilm_fast.load_pretrained(exported))


@pytest.fixture(scope="module")
def videos() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(9, 40, 50), (3, 32, 32), (30, 64, 48)]
    return [
        torch.randint(0, 256, (n, 3, h, w), generator=generator, dtype=torch.uint8)
        for n, h, w in sizes
    ]


def loader(rows: list[dict]) -> DataLoader:
    """Batches of two rows as lists, as mteb's loaders give them."""
    return DataLoader(
        rows,
        batch_size=2,
        collate_fn=lambda batch: {key: [row[key] for row in batch] for key in batch[0]},
    )


def expected(encoder: VideoTextEncoder, video: torch.Tensor) -> torch.Tensor:
    settings = encoder.model.settings
    index = choose_frames(len(video), settings.video.frames, None)
    clip = centre_crop(video[torch.from_numpy(index)].permute(0, 2, 3, 1), settings)
    return encoder.model.embed_clips(clip[None])[0]


def test_a_made_up_retrieval_task(encoder, videos):
    queries = encoder.encode(loader([{"text": text} for text in TEXTS]), hf_split="test")
    corpus = encoder.encode(loader([{"video": video} for video in videos]), hf_split="test")
    torch.testing.assert_close(queries, encoder.model.embed_text(TEXTS), rtol=0, atol=1e-6)
    for row, video in zip(corpus, videos, strict=True):
        torch.testing.assert_close(row, expected(encoder, video), rtol=0, atol=1e-6)
    scores = encoder.similarity(queries, corpus)
    torch.testing.assert_close(scores, queries @ corpus.T)
    torch.testing.assert_close(encoder.similarity_pairwise(queries, corpus), scores.diagonal())
    assert encoder.similarity(queries[0].numpy(), corpus.numpy()).shape == (1, 3)


def test_only_the_frames_that_are_read_are_decoded(encoder, videos):
    decoders = [Decoder(video) for video in videos]
    found = encoder.encode(loader([{"video": each} for each in decoders]))
    arrays = encoder.encode(loader([{"video": video.numpy()} for video in videos]))
    assert torch.equal(found, arrays)
    frames = encoder.model.settings.video.frames
    assert [len(each.decoded) for each in decoders] == [frames] * 3


def test_text_and_video_together(encoder, videos):
    rows = [{"text": text, "video": video} for text, video in zip(TEXTS, videos, strict=True)]
    found = encoder.encode(loader(rows))
    both = encoder.model.embed_text(TEXTS) + torch.stack([expected(encoder, v) for v in videos])
    torch.testing.assert_close(found, both / both.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": [1]}, "needs text or video"),
        ({"video": [torch.zeros(4, 8, 8, 3, dtype=torch.uint8)]}, r"uint8 \[n, 3, H, W\]"),
        ({"video": [np.zeros((4, 3, 8, 8))]}, r"uint8 \[n, 3, H, W\]"),
        ({"video": ["clip.mp4"]}, "or a decoder, got str"),
        ({"video": [np.zeros((0, 3, 8, 8), np.uint8)]}, "has no frames"),
    ],
)
def test_other_batches_are_refused(encoder, batch, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode([batch])


def test_no_batches_are_a_table_without_rows(encoder):
    assert encoder.encode([]).shape == (0, encoder.model.embed_dim)


def test_without_mteb_the_extra_is_named(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UserError, match=r"svilm-fast\[mteb\]"):
        mteb_encoder(encoder.model, "organisation/model")


def test_mteb_accepts_the_encoder(encoder):
    models = pytest.importorskip("mteb.models.models_protocols")
    described = mteb_encoder(encoder.model, "organisation/model")
    assert isinstance(described, models.EncoderProtocol)
    meta = described.mteb_model_meta
    assert meta.name == "organisation/model"
    assert meta.embed_dim == encoder.model.embed_dim
    assert set(meta.modalities) == {"video", "text"}
