"""The embedded world: short clips of coloured shapes whose every pixel and word is known."""

from svilm_fast.data.world.config import WorldConfig
from svilm_fast.data.world.masks import decode_mask
from svilm_fast.data.world.sample import generate_clip
from svilm_fast.data.world.vocabulary import GRAINS, SPLITS
from svilm_fast.data.world.write import WorldReport, render_world

__all__ = [
    "GRAINS",
    "SPLITS",
    "WorldConfig",
    "WorldReport",
    "decode_mask",
    "generate_clip",
    "render_world",
]
