"""`svilm ckpt grow`: a folder that loads as a run, with the outputs of the smaller one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.train.config.options import Weights
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.session import Start, train_as_rank

SHORT = ("training.steps=2", "evaluation.at_end=false", "optimizer.lr=0.01", "ema.decay=0.5")


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["ckpt", "grow", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return f"{result.exit_code} {result.output}"


def test_a_run_grows_and_trains_on(configure, ranks, tmp_path: Path) -> None:
    config = configure(*SHORT, run="small")
    train_as_rank(config, Start(), ranks)
    width, depth = 2 * config.video.width, config.video.depth + 1
    out = tmp_path / "grown"
    told = call(tmp_path / "small", "--width", width, "--depth", depth, "--out", out)
    assert told.startswith("0 wrote")
    assert f"video.width={width} video.depth={depth}" in told
    small, large = load_run(tmp_path / "small", weights=Weights.RAW), load_run(out)
    assert (large.config.video.width, large.config.video.depth) == (width, depth)
    size = config.video.image_size
    frames = torch.randint(0, 256, (2, config.video.frames, size, size, 3), dtype=torch.uint8)
    with torch.no_grad():
        before, after = (
            run.model.encoder.encode_video(frames, None, VideoOutputs()) for run in (small, large)
        )
    for name in ("video", "segments", "groups"):
        torch.testing.assert_close(
            getattr(after, name), getattr(before, name), rtol=0, atol=1e-5, msg=name
        )
    sizes = told.split("training from it: ")[1].split()
    further = configure(*SHORT, *sizes, run="further")
    train_as_rank(further, Start(weights_from=out / "portable"), ranks)

    with pytest.raises(UserError, match="is not empty: give a new --out"):
        call(tmp_path / "small", "--width", width, "--out", out)
    with pytest.raises(UserError, match="at least one of --width"):
        call(tmp_path / "small", "--out", tmp_path / "x")
    with pytest.raises(CheckpointError, match="is not a multiple of the model's"):
        call(tmp_path / "small", "--width", width + 4, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
