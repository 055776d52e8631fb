"""Compressed clips on the device: frames are gathered from palettes, for the kept tokens alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from svilm_fast.data.palettes.format import PixelBlock


@dataclass(frozen=True)
class PaletteFrames:
    """b clips of F frames as codes; it stands where frames uint8 [b, F, H, W, 3] do.

    codes: uint8 [b, F / time, H / height, W / width] of blocks. palettes: uint8 [P, 256, V].
    palette_of: int64 [b, F / time], the palette of every row of blocks along time: the frames of a
    blended clip come from two clips.
    """

    codes: Tensor
    palettes: Tensor
    palette_of: Tensor
    block: PixelBlock

    @classmethod
    def of(cls, codes: Tensor, palettes: Tensor, block: PixelBlock) -> PaletteFrames:
        """Clips [b, ...] with a palette each, [b, 256, V]."""
        rows = torch.arange(len(codes), device=codes.device)[:, None]
        return cls(codes, palettes, rows.expand(codes.shape[:2]), block)

    def __len__(self) -> int:
        """b."""
        return len(self.codes)

    def __getitem__(self, rows: slice) -> PaletteFrames:
        """Some of the clips; the palettes of the others stay, which blended clips may need."""
        return replace(self, codes=self.codes[rows], palette_of=self.palette_of[rows])

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the decoded frames: b, F, H, W, 3."""
        clips, *grid = self.codes.shape
        return clips, *(count * side for count, side in zip(grid, self.block)), 3

    def pasted(self, codes: Tensor, own: Tensor, partner: Tensor) -> PaletteFrames:
        """Blended clips: `codes` of clips and partners, each with the palette of its clip.

        own: bool [b, n], where n divides F / time: parts of the time that are the clip's own.
        partner: int64 [b].
        """
        mine = own.repeat_interleave(codes.shape[1] // own.shape[1], dim=1)
        palette_of = torch.where(mine, self.palette_of, self.palette_of[partner])
        return replace(self, codes=codes, palette_of=palette_of)

    def tubelets(self, tubelet: int, patch: int, token_ids: Tensor | None = None) -> Tensor:
        """Pixels of tubelets of `tubelet` frames and `patch` x `patch` pixels: uint8 [b, n, N].

        token_ids: int64 [b, n], the tubelets that are decoded, over (time, height, width); the
        codes of the others are not looked up. None: all of them. The pixels are ordered by frame,
        row, column and channel, as those cut from decoded frames.

        Raises ValueError where blocks do not fill tubelets.
        """
        block = self.block
        if tubelet % block.time or patch % block.height or patch % block.width:
            raise ValueError(
                f"blocks of {'x'.join(map(str, block))} do not fill tubelets of {tubelet} frames "
                f"and {patch} x {patch} pixels: set data.decompress=worker, or compress with "
                "--vectors colours"
            )
        u, p, q = tubelet // block.time, patch // block.height, patch // block.width
        codes = rearrange(self.codes, "b (t u) (h p) (w q) -> b (t h w) u (p q)", u=u, p=p, q=q)
        palette_of = rearrange(self.palette_of, "b (t u) -> b t 1 u", u=u)
        per_time = codes.shape[1] // palette_of.shape[1]
        if token_ids is None:
            rows = palette_of.expand(-1, -1, per_time, -1).flatten(1, 2)
        else:
            clips = torch.arange(len(codes), device=codes.device)[:, None]
            codes = codes[clips, token_ids]
            rows = palette_of[clips, token_ids // per_time, 0]
        entries = self.palettes.shape[1]
        places = codes.int() + (rows * entries).int()[..., None]
        found = _gathered(self.palettes, places.flatten())
        return rearrange(
            found.view(*places.shape, -1),
            "b n u (p q) (x y z c) -> b n (u x p y q z c)",
            p=p,
            x=block.time,
            y=block.height,
            z=block.width,
        )

    def decoded(self) -> Tensor:
        """The frames, uint8 [b, F, H, W, 3]."""
        block, (_, frames, height, width, _) = self.block, self.shape
        places = (
            self.codes.int() + (self.palette_of * self.palettes.shape[1]).int()[..., None, None]
        )
        found = _gathered(self.palettes, places.flatten())
        whole = rearrange(
            found.view(*places.shape, -1),
            "b t h w (x y z c) -> b (t x) (h y) (w z) c",
            x=block.time,
            y=block.height,
            z=block.width,
        )
        return whole.reshape(-1, frames, height, width, 3)


def _gathered(palettes: Tensor, places: Tensor) -> Tensor:
    """Entries uint8 [n, V] of palettes [P, 256, V]: one gather."""
    return palettes.flatten(0, 1).index_select(0, places)
