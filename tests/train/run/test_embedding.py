"""Files and sentences are embedded exactly as the evaluation embeds the same clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svilm_fast.data.errors import DataError
from svilm_fast.evaluation.embed import embed_clips
from svilm_fast.tasks.pretrain.retrieval import evaluation_data
from svilm_fast.train.run.embedding import embed_texts, embed_videos
from svilm_fast.train.run.loaded_run import load_run
from tests.untrained_run import make_untrained_run


@pytest.mark.parametrize("frames_by", ["time", "index"])
def test_embeddings_are_those_of_the_evaluation(tmp_path: Path, frames_by: str) -> None:
    # The margin leaves a border outside the crop, which another crop would show.
    files = make_untrained_run(
        tmp_path / "run", "data.resize_margin=1.2", f"data.frames_by={frames_by}"
    )
    run = load_run(files.root)
    dataset = evaluation_data(run.config, "test", run.tokenizer)
    indices = list(range(len(dataset)))
    expected = embed_clips(run.model.encoder, [dataset.batch(indices)], progress=False)
    paths = [tmp_path / f"{index}.mp4" for index in indices]
    for index, path in enumerate(paths):
        path.write_bytes(dataset.table.read_video(index))
    found = embed_videos(run, paths, batch_size=4)
    torch.testing.assert_close(found, expected.videos, rtol=0, atol=1e-6)
    texts = embed_texts(run, expected.captions)
    torch.testing.assert_close(texts, expected.texts, rtol=0, atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_nothing_is_a_table_without_rows_and_a_text_file_is_no_video(tmp_path: Path) -> None:
    run = load_run(make_untrained_run(tmp_path / "run").root)
    assert embed_videos(run, []).shape == (0, run.config.model.embed_dim)
    broken = tmp_path / "broken.mp4"
    broken.write_text("this is no video")
    with pytest.raises(DataError, match="not a video file"):
        embed_videos(run, [broken])
