"""Decoding compressed clips on the device: whole clips, or the tokens that dropping keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites.benchmark import SEED, Prepared
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.models.token_dropping import select_tokens

_CLIPS, _FRAMES, _SIZE, _TUBELET, _PATCH = 8, 8, 224, 2, 16
_RATE = 0.9  # of the tokens is dropped
SIZES = {"clips": _CLIPS, "frames": _FRAMES, "image_size": _SIZE, "rate": _RATE}
BLOCKS = {"colours": PixelBlock(1, 1, 1), "blocks": PixelBlock(2, 2, 2)}
CASES = [f"{block}_{part}" for block in BLOCKS for part in ("whole", "kept")]


def prepare(case: str) -> Prepared:
    """`whole`: every tubelet is decoded and a tenth is taken; `kept`: that tenth alone."""
    name, part = case.split("_")
    block = BLOCKS[name]
    generator = torch.Generator().manual_seed(SEED)
    grid = block.grid(_FRAMES, _SIZE, _SIZE)
    codes = torch.randint(256, (_CLIPS, *grid), generator=generator, dtype=torch.uint8)
    shape = (_CLIPS, 256, block.values)
    palettes = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    frames = PaletteFrames.of(codes, palettes, block)
    tokens = (_FRAMES // _TUBELET, _SIZE // _PATCH, _SIZE // _PATCH)
    ids = select_tokens(torch.arange(_CLIPS) * 7919, tokens, rate=_RATE).ids
    rows = torch.arange(_CLIPS)[:, None]

    def whole() -> Tensor:
        return frames.tubelets(_TUBELET, _PATCH)[rows, ids]

    def kept() -> Tensor:
        return frames.tubelets(_TUBELET, _PATCH, ids)

    def verify() -> float:
        wrong = float((whole() != kept()).float().mean())
        if wrong:
            raise WrongResult("kept tokens differ from those of the whole clip", wrong)
        return wrong

    return Prepared(
        call=whole if part == "whole" else kept,
        verify=verify,
        units={"clips": float(_CLIPS), "tokens": float(ids.numel())},
        facts={"block": list(block), "kept": ids.shape[1]},
    )
