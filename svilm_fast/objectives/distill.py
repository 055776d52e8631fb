"""Distillation: the student's embeddings follow those of a teacher, stored on disk."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from svilm_fast.core.settings import Factor, Size
from svilm_fast.kernels import collectives
from svilm_fast.models.flops import Flops, product
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.precision import at_least_fp32, project, unit_norm
from svilm_fast.objectives.base import KIND, HasBlocks, Metric, Objective, ObjectiveConfig
from svilm_fast.objectives.cost import DESCRIPTION_BYTES, FP32, Cost, Sent, Shapes
from svilm_fast.objectives.features import Features, Reads, required


class DistillConfig(ObjectiveConfig):
    """Follow a teacher's stored embeddings (`data.teacher_embeddings`).

    Two of the losses that CLIP-KD compares (Yang et al., CVPR 2024, arXiv 2307.12732).
    """

    kind: Literal["distill"] = Field("distill", description=KIND)
    video: Literal["clean"] = Field("clean", description="a teacher has embedded whole clips")
    loss: Literal["features", "relations"] = Field(
        "features",
        description="features: squared distance of unit vectors (FD of CLIP-KD); relations: "
        "divergence of the similarity distributions over the batch (CRD of CLIP-KD)",
    )
    texts: bool = Field(
        True,
        description="also follow the teacher's captions; relations without them: of videos among "
        "each other",
    )
    teacher_width: Size | None = Field(
        None, description="width of the teacher's embeddings; null: model.embed_dim"
    )
    sharpness: Factor = Field(
        1 / 0.07, description="factor on all similarities of loss=relations, not learned"
    )

    def reads(self) -> Reads:
        sides: frozenset[Literal["video", "text"]] = frozenset(
            ("video", "text") if self.texts else ("video",)
        )
        return Reads.of(self.video, "video", texts=self.texts) | Reads(stored=sides)

    def stored_width(self, blocks: HasBlocks) -> int:
        return self.teacher_width or blocks.model.embed_dim

    def build(self, name: str, blocks: HasBlocks) -> Objective:
        return DistillObjective(self, blocks.model.embed_dim, self.stored_width(blocks), name)

    def cost(self, shapes: Shapes) -> Cost:
        """One projection a side (features), or the products of student and teacher (relations).

        Relations keep four matrices [b, B] of each direction: log-softmax and softmax of both.
        """
        pairs, local, width = shapes.global_batch, shapes.local_batch, shapes.embed_dim
        teacher, sides = self.teacher_width or width, 1 + self.texts
        if self.loss == "features":
            if teacher == width:
                return Cost(kept=float(2 * sides * FP32 * local * width))
            flops = product(pairs, width, teacher) * sides
            return Cost(flops, kept=float(3 * sides * FP32 * local * teacher))
        own = product(pairs, width, pairs) * sides
        flops = own + Flops(2 * sides * pairs * pairs * teacher)
        sent: tuple[Sent, ...] = ()
        if shapes.world_size > 1:
            size = float(FP32 * pairs * width * sides)
            sent = (
                Sent("check of the calls", "all_gather", DESCRIPTION_BYTES * shapes.world_size, 1),
                Sent("student", "all_gather", size, sides),
                Sent("teacher", "all_gather", float(FP32 * pairs * teacher * sides), sides),
                Sent("gradient of the student", "reduce_scatter", size, sides),
            )
        gathered = 2 * FP32 * pairs * (width + teacher) * sides if shapes.world_size > 1 else 0
        matrices = float(FP32 * local * pairs)
        return Cost(flops, kept=4 * sides * matrices + gathered, workspace=2 * matrices, sent=sent)

    def metrics(self, name: str) -> dict[str, Metric]:
        if self.loss == "relations":
            return {}
        return {f"cosine_{name}": Metric(f"{name} cos", "Cosine with the teacher", name)}

    def facts(self, name: str) -> dict[str, str]:
        return super().facts(name) | {"loss": f"{name} loss"}


class DistillObjective(Objective):
    """Owns a projection for each side where the teacher's width is another (features)."""

    def __init__(self, config: DistillConfig, width: int, teacher_width: int, name: str) -> None:
        super().__init__(config, name)
        self.config = config
        sides = ("video", "text") if config.texts else ("video",)
        self.heads = nn.ModuleDict()
        if config.loss == "features" and teacher_width != width:
            for side in sides:
                self.heads[side] = nn.Linear(width, teacher_width)
            initialise(self)

    def forward(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over the batch of all ranks; collective with loss=relations."""
        sides = {
            "video": (
                features.read(self.config.video, "video"),
                required(features.teacher_videos, "teacher_videos"),
            )
        }
        if self.config.texts:
            sides["text"] = (
                required(features.texts, "texts"),
                required(features.teacher_texts, "teacher_texts"),
            )
        if self.config.loss == "relations":
            return self.relations(*zip(*sides.values(), strict=True)), {}
        loss = torch.stack([self.features(side, *pair) for side, pair in sides.items()]).mean()
        return loss, {f"cosine_{self.name}": 1 - loss.detach() / 2}

    def features(self, side: str, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared distance, 0-dim, of student [b, D] and teacher [b, Dt] as unit vectors."""
        if side in self.heads:
            head = self.heads[side]
            assert isinstance(head, nn.Linear)
            student = unit_norm(project(head, student))
        distance = at_least_fp32(student) - unit_norm(at_least_fp32(teacher))
        return distance.square().sum(dim=1).mean()

    def relations(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """Mean divergence, 0-dim, of the student's similarity distributions from the teacher's.

        Each holds videos [b, D], and texts [b, D] unless only videos are compared. A rank has the
        rows of its own samples, over the columns of all ranks; of videos among each other, without
        a video's similarity with itself.
        """
        collectives.check_equal_calls(
            "distillation",
            collectives.described({"student": student[0], "teacher": teacher[0]})
            + f" of {len(student[0])} samples",
            device=student[0].device,
        )
        with torch.autocast(student[0].device.type, enabled=False):
            own = [at_least_fp32(each) for each in student]
            wanted = [unit_norm(at_least_fp32(each)) for each in teacher]
            all_own = [collectives.gather(each) for each in own]
            all_wanted = [collectives.gather(each) for each in wanted]
            # Videos to texts and back; with one side, videos to videos.
            parts = [
                self._divergence(own[i], all_own[-1 - i], wanted[i], all_wanted[-1 - i])
                for i in range(len(own))
            ]
        return torch.stack(parts).mean()

    def _divergence(self, own: Tensor, columns: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        """KL(teacher || student) of the rows' softmax over the columns, averaged over the rows."""
        logits = self.config.sharpness * own @ columns.T
        target = self.config.sharpness * wanted @ targets.T
        if not self.config.texts:
            first = collectives.rank() * len(own)
            itself = torch.zeros_like(logits, dtype=torch.bool)
            itself.diagonal(first).fill_(True)
            # Finite: 0 times -inf has no gradient.
            lowest = torch.finfo(logits.dtype).min / 4
            logits, target = logits.masked_fill(itself, lowest), target.masked_fill(itself, lowest)
        return F.kl_div(
            logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
        )
