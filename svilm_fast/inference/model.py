"""A trained model for use: embeds videos and texts, and grounds nouns in the frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from svilm_fast.core.errors import UserError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.inference.clips import clip_of_frames, read_clip
from svilm_fast.inference.config import PretrainedConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.token_groups import group_grid, noun_weights
from svilm_fast.models.tower_digest import add_tensors
from svilm_fast.models.video_encoder import VideoOutputs

Videos = str | Path | Tensor | np.ndarray | Sequence[str | Path]


@dataclass(frozen=True)
class GroundedNouns:
    """What K nouns attend to in one clip of P x h x w patches, with G groups.

    Attributes:
        nouns: the K texts.
        scores: float32 [K, G], similarity of each noun with each group, in [-1, 1] where both have
            unit norm.
        attention: float32 [K, G], softmax of `sharpness * scores` over the groups; rows sum to 1.
        groups: int64 [P, h, w], the group of each patch.
        masks: bool [K, P, h, w], the patches of the group that the noun attends to most. A mask
            without any patch belongs to a group that this clip leaves empty.
        clip: uint8 [F, H, W, 3], the frames that the model read; position p of P covers frames
            p F / P to (p + 1) F / P.
    """

    nouns: tuple[str, ...]
    scores: Tensor
    attention: Tensor
    groups: Tensor
    masks: Tensor
    clip: Tensor


class PretrainedModel(nn.Module):
    """Encoder, tokenizer and settings of a trained model, in evaluation mode.

    `load_pretrained` makes one of an exported folder. Embeddings are computed in fp32 on the device
    of the parameters, and returned on the CPU.

    Args:
        encoder: the dual encoder.
        settings: of the model and of how it reads videos and texts.
        tokenizer: of the training.
        card: text of the model card.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        settings: PretrainedConfig,
        tokenizer: Tokenizer,
        card: str = "",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = settings
        self.tokenizer = tokenizer
        self.card = card
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.encoder.parameters()).device

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.settings.model.embed_dim

    def fingerprint(self) -> str:
        """SHA-256 of weights, tokenizer and settings; equal models embed equally."""
        digest = hashlib.sha256()
        settings = self.settings.model_dump(mode="json", exclude={"versions", "step", "weights"})
        digest.update(json.dumps(settings, sort_keys=True).encode())
        digest.update(self.tokenizer.to_json().encode())
        add_tensors(digest, self.encoder.state_dict())
        return digest.hexdigest()

    def embed_video(self, videos: Videos, *, batch_size: int = 32) -> Tensor:
        """Embed videos as the evaluation does: middle frames of equal parts, centre crop.

        Args:
            videos: path of a video file, several paths, or frames uint8 [F, H, W, 3] or
                [B, F, H, W, 3] (RGB), a tensor or an array. Frames in the size of the model's input
                are read as they are; of others, the middle frames of equal parts and their centre
                crop are read.
            batch_size: videos per call of the encoder.

        Returns:
            float32 [B, D] on the CPU, rows of unit norm; B = 1 for a single video.

        Raises:
            OSError, DataError: a file that cannot be read or decoded.
            ValueError: a tensor of another shape or dtype, or a sequence of anything but paths.
        """
        if isinstance(videos, np.ndarray):
            videos = torch.from_numpy(np.ascontiguousarray(videos))
        if isinstance(videos, Tensor):
            batch = videos[None] if videos.ndim == 4 else videos
            if batch.ndim != 5:
                batch = videos[None]  # its shape is refused below
            clips = (clip_of_frames(frames, self.settings) for frames in batch)
            return self._embedded(clips, batch_size)
        paths = [videos] if isinstance(videos, str | Path) else list(videos)
        other = next((path for path in paths if not isinstance(path, str | Path)), None)
        if other is not None:
            raise ValueError(
                f"videos must be paths, or frames in one tensor; got a {type(other).__name__} in a "
                f"{type(videos).__name__}"
            )
        return self._embedded((read_clip(path, self.settings) for path in paths), batch_size)

    @torch.no_grad()
    def embed_clips(self, clips: Tensor) -> Tensor:
        """Embed clips uint8 [B, F, H, W, 3] of the model's own size in one call of the encoder.

        Returns float32 [B, D] on the CPU, rows of unit norm.
        """
        outputs = VideoOutputs(groups=False, segments=False)
        return self.encoder.encode_video(clips.to(self.device), None, outputs).video.float().cpu()

    @torch.no_grad()
    def embed_text(self, texts: str | Sequence[str], *, batch_size: int = 1024) -> Tensor:
        """Embed one text or several, at most `batch_size` in one call of the encoder.

        Returns float32 [B, D] on the CPU, rows of unit norm; B = 1 for a single text. What is
        longer than the model's texts is cut, as in training.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        listed = [texts] if isinstance(texts, str) else list(texts)
        parts = [torch.empty(0, self.embed_dim)]
        for first in range(0, len(listed), batch_size):
            batch = listed[first : first + batch_size]
            tokens, mask = self.tokenizer.encode_batch(batch, self.settings.reading.length)
            tokens, mask = tokens.to(self.device), mask.to(self.device)
            parts.append(self.encoder.encode_text(tokens, mask).float().cpu())
        return torch.cat(parts)

    def ground(
        self, video: str | Path | Tensor | np.ndarray, nouns: str | Sequence[str]
    ) -> GroundedNouns:
        """Find the region of one video that each noun attends to.

        Args:
            video: path of a video file, or frames uint8 [F, H, W, 3], read as by `embed_video`.
            nouns: one noun or several ("dog", "red circle").

        Raises:
            UserError: the model has no group tokens.
            OSError, DataError, ValueError: as in `embed_video`.
        """
        if isinstance(video, np.ndarray):
            video = torch.from_numpy(np.ascontiguousarray(video))
        if isinstance(video, Tensor):
            return self.ground_clip(clip_of_frames(video, self.settings), nouns)
        return self.ground_clip(read_clip(video, self.settings), nouns)

    @torch.no_grad()
    def ground_clip(self, clip: Tensor, nouns: str | Sequence[str]) -> GroundedNouns:
        """`ground` for a clip uint8 [F, H, W, 3] of the model's own size."""
        if not self.can_ground:
            raise UserError(
                "this model has no group tokens (video.num_groups=0, or no objective used them), "
                "so it cannot ground nouns; train one with objectives.grounding.weight above 0"
            )
        listed = (nouns,) if isinstance(nouns, str) else tuple(nouns)
        if not listed or not all(noun.strip() for noun in listed):
            raise ValueError("give at least one noun, and no empty one")
        features = self.encoder.encode_video(
            clip[None].to(self.device), None, VideoOutputs(segments=False)
        )
        reading = self.settings.reading
        prompts = [reading.nouns.templates[0].replace("{noun}", noun) for noun in listed]
        tokens, mask = self.tokenizer.encode_batch(prompts, reading.noun_length)
        embedded = self.encoder.encode_nouns(tokens.to(self.device), mask.to(self.device))
        grid = group_grid(features)
        weights = noun_weights(features.groups, embedded[None], self.settings.sharpness)
        assert grid is not None
        assert weights is not None
        assert features.groups is not None
        groups, attention = torch.from_numpy(grid[0]), torch.from_numpy(weights[0])
        masks = groups[None] == attention.argmax(dim=1)[:, None, None, None]
        scores = (embedded.float() @ features.groups[0].float().T).cpu()
        return GroundedNouns(listed, scores, attention, groups, masks, clip)

    @property
    def can_ground(self) -> bool:
        """Whether the model has group tokens."""
        return self.encoder.video.num_groups > 0

    def _embedded(self, clips: Iterator[Tensor], batch_size: int) -> Tensor:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        parts: list[Tensor] = []
        batch: list[Tensor] = []
        for clip in clips:
            batch.append(clip)
            if len(batch) == batch_size:
                parts.append(self.embed_clips(torch.stack(batch)))
                batch = []
        if batch:
            parts.append(self.embed_clips(torch.stack(batch)))
        return torch.cat(parts) if parts else torch.empty(0, self.embed_dim)
