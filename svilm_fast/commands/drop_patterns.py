"""`svilm drop-patterns`: draws which tokens every drop pattern keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print

TITLE = "svilm drop-patterns"


def drop_patterns(
    out: Annotated[Path, typer.Option(help="picture (PNG)")] = Path("drop_patterns.png"),
    rate: Annotated[
        float, typer.Option(min=0.0, max=0.999, help="share of the tokens left out")
    ] = 0.9,
    frames: Annotated[int, typer.Option(min=8, max=32, help="frames of the clip")] = 8,
    size: Annotated[int, typer.Option(min=32, max=512, help="side of the clip, pixels")] = 224,
    tubelet: Annotated[int, typer.Option(min=1, max=8, help="frames in one token")] = 1,
    patch: Annotated[int, typer.Option(min=4, max=64, help="pixels along a token's side")] = 16,
    clip: Annotated[
        int, typer.Option(min=0, max=2**53 - 1, help="seed of the clip of the world")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="seed of the dropping")] = 0,
) -> None:
    """Draw which tokens every drop pattern keeps of a clip of the rendered world."""
    if frames % tubelet or size % patch:
        raise UserError(
            f"--tubelet {tubelet} must divide --frames {frames}, and --patch {patch} --size {size}"
        )
    from svilm_fast.core.earlier_result import check_replaceable
    from svilm_fast.core.files import write_atomically
    from svilm_fast.data.world.config import build_config
    from svilm_fast.data.world.render import render_scene
    from svilm_fast.data.world.scene import draw_scene
    from svilm_fast.report.canvas import to_png
    from svilm_fast.report.drop_patterns import draw_drop_patterns
    from svilm_fast.report.theme import LIGHT, drawing

    check_replaceable(out, TITLE)
    config = build_config(size=size, frames=frames)
    pixels = render_scene(draw_scene(config, "train", clip), size).frames
    grid = (frames // tubelet, size // patch, size // patch)
    with drawing(LIGHT):
        picture = to_png(draw_drop_patterns(pixels, grid, LIGHT, rate=rate, seed=seed), title=TITLE)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, picture)
    print(f"wrote {out}")
