"""The block `weights`: loaded when a run starts, printed, and not loaded when it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.session import Start, train_as_rank

# A rate of almost nothing leaves a run where it started.
STILL = (
    "optimizer.lr=1e-12",
    "optimizer.weight_decay=0",
    "evaluation.at_end=false",
    "training.steps=2",
)


def _vit(config, path: Path) -> dict[str, torch.Tensor]:
    """Random weights of a ViT under timm's names, for the video tower of `config`."""
    video, generator = config.video, torch.Generator().manual_seed(4)
    width, hidden = video.width, int(video.width * video.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (video.image_size // video.patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, video.patch, video.patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(video.depth):
        layer = f"blocks.{number}."
        for name, (rows, columns) in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }.items():
            shapes |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{layer}{name}.weight": (width,), f"{layer}{name}.bias": (width,)}
    weights = {
        name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()
    }
    save_file(weights, path)
    return weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_starts_from_image_weights_and_resumes_without_them(
    configure, ranks, precision, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "vit.safetensors"
    precise = f"training.precision={precision}"
    config = configure(*STILL, precise, f"weights.video={path}", "training.stop_after_steps=1")
    source = _vit(config, path)
    train_as_rank(config, Start(), ranks)
    printed = capsys.readouterr().out
    assert f"weights.video: {path} (timm ViT)" in printed
    assert "new, with initial values" in printed

    path.unlink()
    rest = configure(*STILL, precise, f"weights.video={path}")
    train_as_rank(rest, Start(resume=True), ranks)
    assert "timm ViT" not in capsys.readouterr().out
    portable = Path(config.run.dir) / "portable"
    found = load_file(portable / "model.safetensors")
    for ours, theirs in {
        "blocks.1.attention.qkv.weight": "blocks.1.attn.qkv.weight",
        "norm.weight": "norm.weight",
    }.items():
        # Below what bf16 keeps: its fp32 masters start from the weights, not from rounded ones.
        torch.testing.assert_close(
            found[f"encoder.video.{ours}"], source[theirs], rtol=1e-6, atol=1e-8
        )
    assert load_run(config.run.dir).config.weights.video == str(path)


def test_weights_of_a_run_win_over_those_of_a_library(configure, ranks, tmp_path: Path) -> None:
    first = configure(*STILL, run="first")
    train_as_rank(first, Start(), ranks)
    path = tmp_path / "vit.safetensors"
    second = configure(*STILL, f"weights.video={path}", run="second")
    _vit(second, path)
    train_as_rank(second, Start(weights_from=tmp_path / "first" / "portable"), ranks)
    states = [
        load_file(tmp_path / name / "portable/model.safetensors") for name in ("first", "second")
    ]
    name = "encoder.video.blocks.0.mlp.expand.weight"
    torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-6, atol=1e-8)


def test_text_weights_need_their_tokenizer(configure) -> None:
    with pytest.raises(ConfigError, match=r"set data\.tokenizer\.path"):
        configure("weights.text=somewhere")
    assert configure("weights.text=somewhere", "data.tokenizer.path=there").weights.text
