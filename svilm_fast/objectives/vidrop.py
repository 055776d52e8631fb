"""Self-supervision by sparse clips: a loss on every masked patch, without a decoder.

Our reading of "Video Dense Representation thrOugh spatio-temporal sParsity" (Sameni, Jenni, Favaro;
CVPR 2025 workshop eLVM), of which only the abstract is public: tokens are dropped and masked, there
is no decoder, the loss is computed for each patch, and there are small crops. Everything else here
is our own design: targets, form of the loss, teacher, heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from svilm_fast.core.settings import Fraction, Settings, ShareBelowOne, Size, Weight
from svilm_fast.models.config import CropView
from svilm_fast.models.flops import Flops, product
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.precision import at_least_fp32, masked_mean, project
from svilm_fast.models.token_dropping import keep_count
from svilm_fast.models.transformer import MLP
from svilm_fast.objectives.base import (
    KIND,
    Alarm,
    HasBlocks,
    Metric,
    Objective,
    ObjectiveConfig,
    Scope,
)
from svilm_fast.objectives.collapse import METRICS, CollapseConfig
from svilm_fast.objectives.cost import FP32, Cost, Shapes
from svilm_fast.objectives.features import Features, Reads, View

HIDDEN = 2  # hidden width of an MLP head / C
TOKEN_VARIANCE = 1e-5  # keeps a channel that is equal in all tokens at zero


class CropsConfig(Settings):
    """Small crops of a training clip, beside the whole clip (multi-crop)."""

    count: int = Field(0, ge=0, le=64, description="small crops of a clip; 0: none")
    frames: Size = Field(4, description="frames of a small crop")
    image_size: Size = Field(96, description="side of a small crop, pixels")
    scale: tuple[Fraction, Fraction] = Field(
        (0.05, 0.4), description="smallest and largest window, as shares of the frame's area"
    )
    drop_rate: ShareBelowOne = Field(0.0, description="share of a small crop's tokens left out")

    @model_validator(mode="after")
    def _ordered(self) -> CropsConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={list(self.scale)} must be 0 < smallest <= largest <= 1")
        return self


class ViDropConfig(ObjectiveConfig):
    """Every masked patch predicts its target from what the encoder makes of the visible ones.

    Our reading of ViDROP. The rates are `video.drop.rate` and `video.mask.rate`. target=teacher:
    the state of the patch in a teacher that sees the kept tokens unmasked; its weights are the
    moving average of the block `ema`. target=pixels: the normalised pixels of the patch. A small
    crop predicts the teacher's mean state of the whole clip, or its own masked pixels.
    """

    scope: ClassVar[Scope] = "local"
    kind: Literal["vidrop"] = Field("vidrop", description=KIND)
    target: Literal["teacher", "pixels"] = Field(
        "teacher",
        description="what a masked patch predicts: its state in the moving average of the encoder, "
        "or its normalised pixels",
    )
    normalise: Literal["channels", "tokens"] = Field(
        "channels",
        description="a teacher's states of patches get mean 0 and deviation 1 over the channels of "
        "each, or in every channel over the tokens of the clip, which leaves nothing of what all "
        "tokens have in common",
    )
    loss: Literal["mse", "smooth_l1", "cosine"] = Field(
        "mse", description="distance of a prediction from its target"
    )
    head: Literal["linear", "mlp"] = Field(
        "mlp", description="what predicts the target from the state of one patch"
    )
    crops: CropsConfig = Field(default_factory=CropsConfig)
    crop_weight: Weight = Field(1.0, description="factor on the loss of the small crops")
    collapse: CollapseConfig = Field(default_factory=CollapseConfig)

    def reads(self) -> Reads:
        read = [("clean", "tokens")]
        views: list[View] = ["clean"]
        crops = None
        if self.crops.count:
            views.append("crops")
            read.append(("crops", "tokens"))
            size = self.crops
            masked = self.target == "pixels"
            crops = CropView(
                size.count, size.frames, size.image_size, size.scale, size.drop_rate, masked
            )
        if self.target == "pixels":
            read += [(view, "pixels") for view in views]
        return Reads(
            frozenset(read),  # type: ignore[arg-type]
            teacher=self.target == "teacher",
            spread=True,
            crops=crops,
        )

    def build(self, name: str, blocks: HasBlocks) -> Objective:
        return ViDrop(self, blocks, name)

    def check(self, name: str, blocks: HasBlocks) -> None:
        """Refuse settings without a task, and small crops that the encoder cannot read."""
        video, crops = blocks.video, self.crops
        if video.mask.rate == 0 and (self.target == "pixels" or not crops.count):
            raise ValueError(
                f"objectives.{name} with video.mask.rate=0 hides nothing that could be predicted: "
                "set video.mask.rate above 0"
                + ("" if self.target == "pixels" else f" or objectives.{name}.crops.count")
            )
        if video.lock is True:
            raise ValueError(
                f"objectives.{name} trains the video tower, which video.lock=true freezes"
            )
        sizes = (("frames", video.tubelet, "tubelet"), ("image_size", video.patch, "patch"))
        for setting, unit, of in sizes if crops.count else ():
            value = getattr(crops, setting)
            if value % unit:
                raise ValueError(
                    f"objectives.{name}.crops.{setting}={value} must be a multiple of "
                    f"video.{of}={unit}"
                )
        drop = video.drop
        shown = {"video.drop": (video, drop.rate if drop.rate_max is None else drop.rate_max)}
        small = self.reads().crops
        if small is not None and self.target == "pixels":
            shown[f"objectives.{name}.crops"] = (video.cropped(small), small.drop_rate)
        for settings, (clips, rate) in shown.items():
            kept = keep_count(clips.grid, rate, drop.pattern)
            if kept < 2:
                raise ValueError(
                    f"{settings} keeps {kept} of {clips.num_tokens} tokens; objectives.{name} "
                    "needs 2, of which one is masked and one is shown: lower its drop rate"
                )

    def alarm(self, name: str, step: int, logged: Mapping[str, float]) -> Alarm | None:
        remedy = "Lower optimizer.lr"
        if self.target == "teacher":
            remedy += f", raise ema.decay, or use objectives.{name}.target=pixels"
        return self.collapse.alarm(step, logged, remedy)

    def metrics(self, name: str) -> dict[str, Metric]:
        found = dict(METRICS)
        if self.crops.count:
            crops = Metric(f"{name} crops", "Loss parts", f"{name}, small crops")
            found = {f"loss_crops_{name}": crops} | found
        return found

    def facts(self, name: str) -> dict[str, str]:
        return {
            "weight": f"weight of {name}",
            "target": f"{name}: target of a masked patch",
            "crops.count": f"{name}: small crops of a clip",
        }

    def cost(self, shapes: Shapes) -> Cost:
        """The heads on the tokens of all views, and what they keep beside the features."""
        width, hidden = shapes.width, HIDDEN * shapes.width
        out = width if self.target == "teacher" else shapes.patch_numbers
        crop_rows = shapes.crop_tokens if self.target == "pixels" else self.crops.count

        def head(rows: int) -> Flops:
            if self.head == "linear":
                return product(rows, width, out)
            return product(rows, width, hidden) + product(rows, hidden, out)

        rows = shapes.tokens + crop_rows
        # Targets, predictions, their difference and the operands of the head.
        inner = width + (2 * hidden if self.head == "mlp" else 0) + 3 * out
        kept = FP32 * shapes.local_batch * rows * inner
        return Cost(head(rows) * shapes.global_batch, kept=float(kept))


class ViDrop(Objective):
    """The loss of the masked patches, and of the small crops."""

    def __init__(self, config: ViDropConfig, blocks: HasBlocks, name: str) -> None:
        super().__init__(config, name)
        self.config = config
        video = blocks.video
        teacher = config.target == "teacher"
        self.masks = video.mask.rate > 0
        out = video.width if teacher else video.tubelet * video.patch**2 * 3
        if self.masks:
            self.patch_head = _head(config.head, video.width, out)
        if config.crops.count and teacher:
            self.crop_head = _head(config.head, video.width, out)
        initialise(self)

    def forward(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the masked patches of a clip, then over the clips; the crops alike."""
        teacher = self.config.target == "teacher"
        terms: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        if self.masks:
            target = self._taught(features) if teacher else features.read("clean", "pixels")
            terms.append(self._of_patches(features, "clean", target))
        if self.config.crops.count:
            crops = (
                self._of_crops(features)
                if teacher
                else self._of_patches(features, "crops", features.read("crops", "pixels"))
            )
            terms.append(self.config.crop_weight * crops)
            metrics[f"loss_crops_{self.name}"] = crops.detach()
        return torch.stack(terms).sum(), metrics

    def _taught(self, features: Features) -> Tensor:
        states = features.read("teacher", "tokens")
        if self.config.normalise == "channels":
            return normalised(states)
        return over_tokens(states, features.view("teacher").token_mask)

    def _of_patches(self, features: Features, view: View, target: Tensor) -> Tensor:
        found = features.view(view)
        predicted = predictions(self.patch_head, features.read(view, "tokens"))
        errors = distance(predicted, target, self.config.loss)
        return masked_mean(errors[..., None], found.masked).mean()

    def _of_crops(self, features: Features) -> Tensor:
        """Each small crop predicts the teacher's mean state of the whole clip."""
        crops, teacher = features.view("crops"), features.view("teacher")
        states = masked_mean(features.read("crops", "tokens"), crops.token_mask)
        whole = masked_mean(features.read("teacher", "tokens"), teacher.token_mask)
        target = normalised(whole).repeat_interleave(self.config.crops.count, dim=0)
        return distance(predictions(self.crop_head, states), target, self.config.loss).mean()


def _head(kind: str, width: int, out: int) -> nn.Module:
    return nn.Linear(width, out) if kind == "linear" else MLP(width, HIDDEN * width, out)


def predictions(head: nn.Module, states: Tensor) -> Tensor:
    """Apply a head to states that may be fp32 although its parameters are bf16."""
    if isinstance(head, nn.Linear):
        return at_least_fp32(project(head, states))
    return at_least_fp32(head(states.to(next(head.parameters()).dtype)))


def normalised(states: Tensor) -> Tensor:
    """Each state with mean 0 and deviation 1, so that the scale of the teacher has no effect."""
    return F.layer_norm(at_least_fp32(states), states.shape[-1:])


def over_tokens(states: Tensor, mask: Tensor | None) -> Tensor:
    """Each channel with mean 0 and deviation 1 over the tokens of a clip.

    After Baevski et al., "data2vec" (arXiv 2202.03555): a constant is no longer a target that could
    be predicted without looking. states: [b, n, C]. mask: bool [b, n]; None: all tokens count.
    """
    centred = at_least_fp32(states) - masked_mean(states, mask)[:, None]
    variance = masked_mean(centred.square(), mask)[:, None]
    return centred * (variance + TOKEN_VARIANCE).rsqrt()


def distance(predicted: Tensor, target: Tensor, loss: str) -> Tensor:
    """Distance of vectors [..., C] from their targets, [...].

    mse: mean squared error over C; smooth_l1: with the bend at 1; cosine: 1 - cosine.
    """
    if loss == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=-1)
    error = F.mse_loss if loss == "mse" else F.smooth_l1_loss
    return error(predicted, target, reduction="none").mean(dim=-1)
