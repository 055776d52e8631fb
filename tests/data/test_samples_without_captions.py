"""A data set without captions is legal with `data.captions=none`, and with no other grain."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import DataError
from svilm_fast.data.loader import build_loader
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split
from svilm_fast.evaluation.embed import CaptionTable
from svilm_fast.models.config import TextConfig
from svilm_fast.models.text_encoder import TextEncoder, TextSequences

BARE = {"json": b"{}"}


def test_samples_without_captions_are_usable_with_none_alone(make_shards):
    spoken = {"json": json.dumps({"caption": "A dog.", "segment": [0, 1]}).encode()}
    folder = make_shards(4, replace={0: BARE, 2: BARE, 3: spoken})
    none = open_split(DataConfig(train=str(folder), captions="none"), "train")
    assert list(none.ids) == ["s0000", "s0001", "s0002", "s0003"]
    assert [sample.captions for sample in none] == [()] * 4
    assert none.rejected == []
    assert none[3].segment == (0.0, 1.0)
    fused = open_split(DataConfig(train=str(folder)), "train")
    assert list(fused.ids) == ["s0001", "s0003"]
    assert [skip.reason for skip in fused.rejected] == ["no caption"] * 2
    assert "data.captions=none" in fused.rejected[0].message
    assert none.fingerprint != fused.fingerprint


def test_a_set_without_any_caption(make_shards):
    folder = str(make_shards(3, replace=dict.fromkeys(range(3), BARE)))
    with pytest.raises(DataError, match=r"no usable sample.*data\.captions=none"):
        open_split(DataConfig(train=folder), "train")
    assert len(open_split(DataConfig(train=folder, captions="none"), "train")) == 3


def test_broken_samples_are_refused_with_none_too(make_shards):
    broken = {1: {"json": b"{"}, 2: {"json": b'{"segment": [2, 1]}'}}
    table = open_split(
        DataConfig(train=str(make_shards(4, replace=broken)), captions="none"), "train"
    )
    assert [skip.reason for skip in table.rejected] == ["bad sample json", "bad segment"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_hold_empty_texts_and_no_nouns(make_dataset, workers):
    dataset = make_dataset(4, captions="none", replace={0: BARE}, workers=workers, unit=2)
    with build_loader(dataset.config, dataset, batch_size=4) as loader:
        batch = next(iter(loader))
    assert batch.captions == [""] * 4
    assert batch.nouns == [[]] * 4
    assert batch.noun_tokens.shape == (4, 0, 16)
    assert batch.text_mask.sum(1).tolist() == [2] * 4
    tokenizer = dataset.tokenizer
    assert batch.text_tokens[0, :2].tolist() == [tokenizer.start_id, tokenizer.end_id]


def test_the_text_encoder_takes_empty_texts(make_dataset):
    dataset = make_dataset(2, captions="none")
    batch = dataset.batch([0, 1])
    words = dataset.tokenizer.vocab_size
    config = TextConfig(vocab_size=words, width=32, depth=1, heads=2, length=32)
    encoder = TextEncoder(config, 8)
    for parameter in encoder.embedding.parameters():
        torch.nn.init.normal_(parameter)
    (found,) = encoder([TextSequences(batch.text_tokens, batch.text_mask)])
    assert torch.isfinite(found).all()


def test_retrieval_says_that_it_needs_captions(make_dataset):
    dataset = make_dataset(2, captions="none", train=False)
    with pytest.raises(DataError, match=r"data\.captions=none: retrieval needs captions"):
        CaptionTable.of(dataset)


def test_a_list_without_captions_is_packed_and_inspected(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(videos[0])
    (tmp_path / "list.csv").write_text("video,label\na.mp4,Apply Lipstick\n")
    out = tmp_path / "shards"
    report = pack(str(tmp_path / "list.csv"), out, config=DataConfig(captions="none"))
    assert (report.written, report.captions) == (1, 0)
    config = DataConfig(train=str(out), captions="none", workers=0)
    dataset = ClipDataset(config, "train", prepare_tokenizer(config), frames=2, image_size=16)
    assert dataset.labels == ["Apply Lipstick"]
    done = CliRunner().invoke(app, ["data", "inspect", str(out), "--captions", "none"])
    assert done.exit_code == 0, done.output
    assert "1 usable, 0 refused" in done.output
