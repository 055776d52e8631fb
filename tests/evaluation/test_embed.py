"""Embedding of clips: each once, in order, in evaluation mode, with pictures where asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.loader import build_loader
from svilm_fast.evaluation.embed import CaptionTable, embed_clips, join, small_frames


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_rows_follow_the_data_set_for_every_batch_size(
    make_dataset: Callable[..., ClipDataset], colour_model, batch_size: int
) -> None:
    dataset = make_dataset()
    loader = build_loader(dataset.config, dataset, batch_size=batch_size)
    found = embed_clips(colour_model, loader)
    assert found.video_ids == list(dataset.ids)
    assert found.captions == list(dataset.table.captions())
    assert found.video_of_text.tolist() == list(range(9))
    assert found.metadata[3]["vid_key"] == "msr3"
    batch = dataset.batch(range(9))
    expected = colour_model.encode_video(batch.frames).video
    torch.testing.assert_close(found.videos, expected)
    torch.testing.assert_close(
        found.texts, colour_model.encode_text(batch.text_tokens, batch.text_mask)
    )


def test_evaluation_mode_for_the_time_being(make_dataset, colour_model) -> None:
    dataset = make_dataset()
    colour_model.train()
    embed_clips(colour_model, build_loader(dataset.config, dataset, batch_size=5))
    assert colour_model.training
    assert colour_model.video_calls == [(5, False), (4, False)]


def test_a_video_that_comes_again_is_encoded_but_counts_once(make_dataset, colour_model) -> None:
    dataset = make_dataset()
    batches = [dataset.batch([0, 1, 2]), dataset.batch([2, 3]), dataset.batch([0, 1])]
    found = embed_clips(colour_model, batches)
    assert found.video_ids == dataset.ids[:4]
    assert len(found.videos) == len(found.texts) == 4
    assert [rows for rows, _ in colour_model.video_calls] == [3, 1, 1]


def test_calls_are_filled_up_for_ranks_that_must_keep_step(make_dataset, colour_model) -> None:
    dataset = make_dataset()
    found = embed_clips(colour_model, [dataset.batch([0, 1])], calls=4)
    assert len(colour_model.video_calls) == 4
    assert found.video_ids == dataset.ids[:2]


def test_every_caption_of_a_video_is_a_text(make_dataset, colour_model) -> None:
    dataset = make_dataset(captions=3)
    loader = build_loader(dataset.config, dataset, batch_size=4)
    table = CaptionTable.of(dataset)
    found = embed_clips(colour_model, loader, captions=table)
    assert len(found.videos) == 9
    assert found.captions == list(dataset.table.captions())
    assert found.video_of_text.tolist() == [row for row in range(9) for _ in range(3)]
    expected = colour_model.encode_text(table.tokens.long(), table.mask)
    torch.testing.assert_close(found.texts, expected)


def test_join_gives_what_one_process_gives(make_dataset, colour_model) -> None:
    dataset = make_dataset(captions=2)
    table = CaptionTable.of(dataset)

    def embed(rows: list[int]) -> object:
        return embed_clips(colour_model, [dataset.batch(rows)], captions=table, keep_frames=2)

    whole, joined = embed(list(range(9))), join([embed([0, 1, 2, 3, 4]), embed([4, 5, 6, 7, 8])])
    assert joined.video_ids == whole.video_ids
    assert joined.captions == whole.captions
    assert torch.equal(joined.video_of_text, whole.video_of_text)
    torch.testing.assert_close(joined.videos, whole.videos)
    torch.testing.assert_close(joined.texts, whole.texts)
    assert torch.equal(joined.frames, whole.frames)


def test_nothing_to_embed_is_an_error(colour_model) -> None:
    with pytest.raises(ValueError, match="no clip could be embedded"):
        embed_clips(colour_model, [])


def test_small_frames_are_the_middles_of_equal_parts() -> None:
    frames = torch.arange(8, dtype=torch.uint8)[None, :, None, None, None].expand(1, 8, 6, 10, 3)
    small = small_frames(30 * frames, 4, 5)
    assert small.shape == (1, 4, 3, 5, 3)
    assert small[0, :, 0, 0, 0].tolist() == [30, 90, 150, 210]
    assert small_frames(frames, 8, 99).shape == frames.shape
