"""Global contrast of videos with captions over the batch of all ranks."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from svilm_fast.kernels.infonce import distributed_infonce
from svilm_fast.kernels.infonce.fused.layout import DEFAULT_ROWS
from svilm_fast.objectives.base import (
    KIND,
    VIDEO,
    HasBlocks,
    Metric,
    Objective,
    ObjectiveConfig,
    Products,
    VideoSource,
    operand,
)
from svilm_fast.objectives.cost import (
    FP32,
    Cost,
    Sent,
    Shapes,
    gathered_bytes,
    gathered_rows,
    pairwise_flops,
    slices,
)
from svilm_fast.objectives.features import Features, Reads, required
from svilm_fast.objectives.scale import Scale, ScaleConfig

# Default workspace of the op, on a GPU and elsewhere: kernels/infonce.
WORKSPACE = {True: 512 << 20, False: 64 << 20}


class ContrastConfig(ObjectiveConfig):
    """Global contrast of videos with captions."""

    kind: Literal["contrast"] = Field("contrast", description=KIND)
    video: VideoSource = Field("blended", description=VIDEO)
    exclude_partner: bool = Field(
        False, description="the caption of the clip that gave the background is no negative"
    )
    scale: ScaleConfig = Field(default_factory=ScaleConfig)

    @model_validator(mode="after")
    def _partners_exist(self) -> ContrastConfig:
        if self.exclude_partner and self.video == "clean":
            raise ValueError("exclude_partner needs video=blended: a clean clip has no partner")
        return self

    def reads(self) -> Reads:
        reads = Reads.of(self.video, "video", texts=True)
        return reads | Reads(partners=self.exclude_partner)

    def build(self, name: str, blocks: HasBlocks) -> Objective:
        objectives = blocks.objectives
        return ContrastObjective(self, objectives.workspace, objectives.products, name)

    def without_blending(self, name: str) -> str | None:
        """The same objective can read clean clips instead."""
        return f"objectives.{name}.video=clean" if self.video == "blended" else None

    def cost(self, shapes: Shapes) -> Cost:
        """Dot products of all videos with all captions, recomputed in backward."""
        pairs, local, width = shapes.global_batch, shapes.local_batch, shapes.embed_dim
        flops = pairwise_flops(shapes, pairs, pairs)
        columns = pairs // slices(shapes, width)
        rows = FP32 * min(DEFAULT_ROWS, local) * columns if shapes.on_gpu else 0
        bound = shapes.workspace_bytes or max(WORKSPACE[shapes.on_gpu], rows)
        sent = gathered_rows(shapes, "texts", width)
        if sent and (self.exclude_partner or shapes.masked_sources):
            sent += (Sent("pair ids", "all_gather", 8.0 * pairs, 1),)
        return Cost(
            flops,
            recomputed=flops.forward,
            kept=gathered_bytes(shapes, width),
            workspace=float(min(bound, 4 * FP32 * local * pairs)),
            sent=sent,
        )

    def metrics(self, name: str) -> dict[str, Metric]:
        accuracy, scales = "Accuracy in the batch, %", "Scales"
        names, own = metric_names(name), "" if name == self.kind else f"{name} "
        return {
            names[0]: Metric(f"{own}acc v2t", accuracy, f"{own}video to text", share=True),
            names[1]: Metric(f"{own}acc t2v", accuracy, f"{own}text to video", share=True),
            f"scale_{name}": Metric(f"{own}scale", scales, name),
        }

    def facts(self, name: str) -> dict[str, str]:
        return {"weight": "weight of global contrast" if name == self.kind else f"weight of {name}"}


class ContrastObjective(Objective):
    """Symmetric InfoNCE; owns its scale."""

    def __init__(
        self,
        config: ContrastConfig,
        workspace_bytes: int | None = None,
        products: Products = "fp32",
        name: str | None = None,
    ) -> None:
        super().__init__(config, name)
        self.config = config
        self.workspace_bytes = workspace_bytes
        self.products = products
        self.scale = Scale(config.scale)

    def forward(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE over the batch of all ranks; collective."""
        videos = operand(features.read(self.config.video, "video"), self.products)
        texts = operand(required(features.texts, "texts"), self.products)
        loss, scale = self.loss(videos, texts, features.pair_ids, features.source_ids)
        accuracies = retrieval_accuracy(videos, texts)
        named = dict(zip(metric_names(self.name), accuracies, strict=True))
        return loss, {f"scale_{self.name}": scale} | named

    def loss(
        self,
        videos: Tensor,
        texts: Tensor,
        pair_ids: Tensor | None = None,
        source_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and detached scale, both 0-dim.

        Args:
            videos: [b, D], unit norm.
            texts: [b, D], unit norm; row i belongs to video i.
            pair_ids: int64 [b], read with `exclude_partner`: equal ids are no negatives.
            source_ids: int64 [b], likewise, where given; not together with `exclude_partner`.
        """
        if self.config.exclude_partner and pair_ids is None:
            raise ValueError(
                f"objectives.{self.name}.exclude_partner needs the pair_ids of cut-and-paste"
            )
        if self.config.exclude_partner and source_ids is not None:
            raise ValueError(
                f"objectives.{self.name}.exclude_partner and data.same_source=mask both name pairs "
                "that are no negatives, and only one of them can: switch one off"
            )
        scale = self.scale(videos)
        loss = distributed_infonce(
            videos,
            texts,
            scale,
            pair_ids=pair_ids if self.config.exclude_partner else source_ids,
            pair_mode="exclude",
            workspace_bytes=self.workspace_bytes,
        )
        return loss, scale.detach()


def metric_names(name: str) -> tuple[str, str]:
    """Return the names of both accuracies, with the objective's name unless it is `contrast`."""
    end = "" if name == "contrast" else f"_{name}"
    return f"accuracy_v2t{end}", f"accuracy_t2v{end}"


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
