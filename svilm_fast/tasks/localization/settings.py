"""Settings of temporal localization."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from svilm_fast.core.settings import Fraction, PathText, Settings
from svilm_fast.evaluation.class_fusion import FusionRule
from svilm_fast.evaluation.localization import Dedupe
from svilm_fast.evaluation.soft_nms import SoftNmsSettings
from svilm_fast.tasks.settings import TaskSettings


class SubsetNames(Settings):
    """The subset of the annotations that each split reads."""

    train: str = Field("training", description="subset of data.train")
    val: str = Field("validation", description="subset of data.val")
    test: str = Field("testing", description="subset of data.test")


class LayoutSettings(Settings):
    """Which frames a vector saw; read only for features that do not say so (.npy, .csv)."""

    stride: int | None = Field(None, ge=1, description="frames between two vectors")
    clip: int | None = Field(None, ge=1, description="frames that a vector sees")
    fps: float | None = Field(None, gt=0, description="frames a second")


class ActionFormerSettings(Settings):
    """An ActionFormer-class head (Zhang et al. 2022), our own code."""

    width: int = Field(256, ge=4, le=8192, description="channels")
    heads: int = Field(4, ge=1, le=256, description="attention heads")
    window: int = Field(
        7, ge=1, le=999, description="odd window of local attention; the last level attends to all"
    )
    levels: int = Field(6, ge=1, le=10, description="levels of the pyramid; each halves the time")
    embedding_layers: int = Field(2, ge=1, le=16, description="convolutions before the blocks")
    stem_layers: int = Field(2, ge=0, le=16, description="transformer blocks of the first level")
    head_layers: int = Field(3, ge=1, le=16, description="convolutions of each of the two heads")
    ranges: float = Field(
        4.0, gt=0, description="longest distance to a boundary on the first level, steps; doubles"
    )
    centre_radius: float = Field(1.5, gt=0, description="radius of the positive points, strides")
    drop_path: float = Field(0.1, ge=0, lt=1, description="drop-path rate")
    residual_scale: float = Field(1e-4, gt=0, le=1, description="initial scale of the branches")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the class targets")
    regression_weight: float = Field(2.0, ge=0, description="weight of the 1-D DIoU loss")
    normaliser: float = Field(200.0, gt=0, description="initial running mean of positive points")


class GtadSettings(Settings):
    """A G-TAD-class head (Xu et al. 2020), our own code; it predicts proposals only."""

    width: int = Field(256, ge=32, le=8192, description="channels, a multiple of 32")
    neighbours: int = Field(3, ge=1, le=64, description="semantic neighbours in the graph")
    samples: int = Field(16, ge=2, le=64, description="points inside a proposal, and around it")
    hidden: int = Field(128, ge=4, le=4096, description="channels of the proposal map")
    regression_weight: float = Field(10.0, ge=0, description="weight of the IoU regression")
    positive_iou: Fraction = Field(0.9, description="IoU from which the classification is positive")


class LocalizationSettings(TaskSettings):
    """Which features, which annotations and which head."""

    own_loss: ClassVar[bool] = True

    annotations: PathText | None = Field(None, description="annotations, ActivityNet JSON")
    subsets: SubsetNames = Field(default_factory=lambda: SubsetNames())
    bad_segments: Literal["error", "keep", "drop"] = Field(
        "error", description="annotated segments that are empty, negative or beyond the video"
    )
    layout: LayoutSettings = Field(default_factory=lambda: LayoutSettings())
    width: int = Field(256, ge=1, le=65536, description="C, numbers of a feature vector")
    head: Literal["actionformer", "gtad"] = Field("actionformer", description="the head")
    actionformer: ActionFormerSettings = Field(default_factory=lambda: ActionFormerSettings())
    gtad: GtadSettings = Field(default_factory=lambda: GtadSettings())
    resize: bool = Field(True, description="resize every video to `length` steps, by interpolation")
    length: int = Field(
        192, ge=2, le=65536, description="steps of a video; without resize: most in training"
    )
    crop: tuple[Fraction, Fraction] = Field(
        (0.9, 1.0), description="share of a training video that is shown; [1, 1]: all"
    )
    truncation: Fraction = Field(
        0.5, description="a segment that a crop cuts stays if this share of it is left"
    )
    labels: Literal["own", "external"] = Field(
        "external", description="own: the head classifies; external: the file `classifier` does"
    )
    classes: tuple[str, ...] | None = Field(
        None, description="labels; null: those of the training subset, in the order of the file"
    )
    classifier: PathText | None = Field(
        None, description="scores of a video-level classifier in CUHK's format, for evaluation"
    )
    top_classes: int = Field(2, ge=1, le=1000, description="classes of a video that are tried")
    fusion: FusionRule = Field("sqrt", description="product of both scores, or its root")
    nms: SoftNmsSettings = Field(default_factory=lambda: SoftNmsSettings())
    min_score: float = Field(1e-3, ge=0, le=1, description="proposals below are dropped")
    thresholds: Literal["activitynet", "thumos"] = Field(
        "activitynet", description="IoU 0.5:0.05:0.95, or 0.3:0.1:0.7"
    )
    dedupe: Dedupe = Field("none", description="which annotations are the same one")
    blocked: PathText | None = Field(None, description="list of videos that are left out")

    @model_validator(mode="after")
    def _consistent(self) -> LocalizationSettings:
        former = self.actionformer
        if self.head == "actionformer":
            step = 2 ** (former.levels - 1)
            if self.length % step:
                raise ValueError(
                    f"length={self.length} must be a multiple of {step}, because "
                    f"actionformer.levels={former.levels} halve the time"
                )
            if former.width % former.heads or former.window % 2 == 0:
                raise ValueError(
                    "actionformer.width must be a multiple of heads, and window must be odd"
                )
        elif not self.resize or self.labels == "own" or self.gtad.width % 32:
            raise ValueError(
                "head=gtad needs resize=true, labels=external, and gtad.width a multiple of 32"
            )
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"crop={self.crop}: needs 0 < smallest <= largest <= 1")
        return self
