"""Global contrast of videos with captions over the batch of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from svilm_fast.kernels.infonce import distributed_infonce
from svilm_fast.objectives.config import ContrastConfig
from svilm_fast.objectives.scale import Scale


class ContrastObjective(nn.Module):
    """Symmetric InfoNCE; owns its scale."""

    def __init__(self, config: ContrastConfig, workspace_bytes: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.workspace_bytes = workspace_bytes
        self.scale = Scale(config.scale)

    def forward(
        self, videos: Tensor, texts: Tensor, pair_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and detached scale, both 0-dim.

        Args:
            videos: [b, D], unit norm.
            texts: [b, D], unit norm; row i belongs to video i.
            pair_ids: int64 [b], read with `exclude_partner`: equal ids are no negatives.
        """
        if self.config.exclude_partner and pair_ids is None:
            raise ValueError(
                "objectives.contrast.exclude_partner needs the pair_ids of cut-and-paste"
            )
        scale = self.scale(videos)
        loss = distributed_infonce(
            videos,
            texts,
            scale,
            pair_ids=pair_ids if self.config.exclude_partner else None,
            pair_mode="exclude",
            workspace_bytes=self.workspace_bytes,
        )
        return loss, scale.detach()


@torch.no_grad()
def retrieval_accuracy(videos: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Share of videos whose own caption is the nearest of the local batch, and the reverse.

    Args:
        videos: [b, D].
        texts: [b, D].

    Returns:
        Two 0-dim tensors: video to text, text to video.
    """
    scores = videos @ texts.T
    own = torch.arange(len(scores), device=scores.device)
    to_text = (scores.argmax(dim=1) == own).float().mean()
    to_video = (scores.argmax(dim=0) == own).float().mean()
    return to_text, to_video
