"""From uint8 frames to video tokens with their positions in space and time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.models.config import VideoConfig
from svilm_fast.models.initialisation import sines
from svilm_fast.models.positions import resized_space, resized_time
from svilm_fast.models.precision import at_least_fp32

# Mean and standard deviation of pixels, by `video.pixels`; most video encoders expect ImageNet's.
PIXELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


# Name of the learned vector of masked tubelets in a whole model; one without masking lacks it.
MASK_TOKEN = "encoder.video.embedding.mask_token"
# Keeps the normalised pixels of a tubelet of one colour at zero.
PIXEL_VARIANCE = 1e-6


class TubeletEmbedding(nn.Module):
    """Linear embedding of tubelets plus learned space and time positions.

    With `video.mask` it has a learned vector that stands for the pixels of a masked tubelet.
    """

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        time, height, width = config.grid
        self.projection = nn.Linear(config.tubelet * config.patch**2 * 3, config.width)
        self.space_position = nn.Parameter(torch.empty(height * width, config.width))
        self.time_position = nn.Parameter(torch.empty(time, config.width))
        if config.mask.rate > 0:
            self.mask_token = nn.Parameter(torch.empty(config.width))

    def sine_positions(self, name: str) -> Tensor | None:
        """Return the sines and cosines of a position table; None for another parameter.

        Half the channels of a place are of its row and half of its column. Time is counted in
        spatial places, so that a clip is as long as a frame is high.
        """
        time, height, width = self.config.grid
        if name == "time_position":
            return sines(torch.arange(time) * (height / time), self.config.width)
        if name != "space_position":
            return None
        rows = sines(torch.arange(height), self.config.width // 2)
        columns = sines(torch.arange(width), self.config.width - rows.shape[1])
        return torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)], dim=1)

    def forward(
        self,
        frames: Tensor | PaletteFrames,
        token_ids: Tensor,
        masked: Tensor | None = None,
        shown: VideoConfig | None = None,
    ) -> Tensor:
        """Embeds the tubelets numbered `token_ids` alone: dropped ones cost nothing.

        Args:
            frames: uint8 [b, F, H, W, 3], or compressed clips, of which only the tubelets
                numbered are decoded.
            token_ids: int64 [b, n], or [L] for every tubelet of every clip.
            masked: bool [b, n], tubelets whose pixels are not shown; None: all are.
            shown: sizes of the clips where they are not those of the encoder; the positions are
                interpolated to their grid.

        Returns:
            [b, n, C].
        """
        shown = shown or self.config
        tokens = self.projection(self._normalised(self._tubelets(frames, token_ids, shown)))
        if masked is not None:
            tokens = torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        space, time = self._positions(shown)
        return (
            tokens
            + F.embedding(token_ids % len(space), space)
            + F.embedding(token_ids // len(space), time)
        )

    def pixels(
        self, frames: Tensor | PaletteFrames, token_ids: Tensor, shown: VideoConfig
    ) -> Tensor:
        """Pixels of the tubelets, each with mean 0 and deviation 1; fp32, see `VideoFeatures`."""
        pixels = self._tubelets(frames, token_ids, shown).float() / 255
        variance, mean = torch.var_mean(pixels, dim=-1, correction=0, keepdim=True)
        return (pixels - mean) * (variance + PIXEL_VARIANCE).rsqrt()

    def _positions(self, shown: VideoConfig) -> tuple[Tensor, Tensor]:
        """The tables of space [h * w, C] and time [t, C] for the grid of `shown`."""
        space, time = self.space_position, self.time_position
        own, wanted = self.config.grid, shown.grid
        if own[1:] != wanted[1:]:
            table = resized_space(at_least_fp32(space), own[1:], wanted[1:])
            space = table.to(space.dtype)  # type: ignore[assignment]
        if own[0] != wanted[0]:
            table = resized_time(at_least_fp32(time), wanted[0], keep_ends=False)
            time = table.to(time.dtype)  # type: ignore[assignment]
        return space, time

    def _tubelets(
        self, frames: Tensor | PaletteFrames, token_ids: Tensor, shown: VideoConfig
    ) -> Tensor:
        """uint8 [b, n, pixels]."""
        self._check(frames, shown)
        tubelet, patch = self.config.tubelet, self.config.patch
        kept = token_ids if token_ids.dim() == 2 else None
        if isinstance(frames, PaletteFrames):
            return frames.tubelets(tubelet, patch, kept)
        tubelets = rearrange(
            frames,
            "b (t u) (h p) (w q) c -> b (t h w) (u p q c)",
            u=tubelet,
            p=patch,
            q=patch,
        )
        if kept is None:
            return tubelets
        rows = torch.arange(len(frames), device=frames.device)[:, None]
        return tubelets[rows, kept]

    def _normalised(self, tubelets: Tensor) -> Tensor:
        dtype = self.projection.weight.dtype
        pixels = at_least_fp32(tubelets.to(dtype)).unflatten(-1, (-1, 3))
        gain, shift = _pixel_affine(pixels, *PIXELS[self.config.pixels])
        return torch.addcmul(shift, pixels, gain).flatten(-2).to(dtype)

    def _check(self, frames: Tensor | PaletteFrames, shown: VideoConfig) -> None:
        size = shown.image_size
        expected = (shown.frames, size, size, 3)
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"frames must be uint8 [b, {', '.join(map(str, expected))}] "
                "(video.frames, video.image_size), got "
                f"{str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}"
            )


def _pixel_affine(
    pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Gain and shift [3] of the normalisation, with dtype and device of `pixels`.

    They are filled on the device at each call. A cache would keep the tensors of a FakeTensorMode
    or of inference mode for later steps.
    """
    gain = [pixels.new_full((1,), 1 / (255 * s)) for s in std]
    shift = [pixels.new_full((1,), -m / s) for m, s in zip(mean, std, strict=True)]
    return torch.cat(gain), torch.cat(shift)
