"""The interface of an objective (settings and module), and the registry.

A new objective is one file with a subclass of each class here, and one line in
`objectives/__init__.py` or an entry point of its package; docs/adding-an-objective.md shows one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.plugins import OBJECTIVES_GROUP, find_plugin, load_plugin, plugin_names
from svilm_fast.core.settings import Settings, Weight
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.objectives.cost import Cost, Shapes
from svilm_fast.objectives.features import Feature, Features, Reads

Scope = Literal["local", "global"]
VideoSource = Literal["clean", "blended"]
Products = Literal["fp32", "autocast"]
KIND = "which objective this is; a key that is the name of a kind needs none"
VIDEO = "the clips that are read: as they are (clean), or after cut-and-paste (blended)"
WEIGHT = "factor on this loss in the sum; 0 removes the loss and its cost"


class SharedSettings(Protocol):
    """Settings of all objectives: bound of temporary memory in bytes, dtype of products."""

    @property
    def workspace(self) -> int | None: ...

    @property
    def products(self) -> Products: ...


class HasBlocks(Protocol):
    """The configuration blocks that an objective is built from."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def video(self) -> VideoConfig: ...

    @property
    def text(self) -> TextConfig: ...

    @property
    def objectives(self) -> SharedSettings: ...


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    short: on the progress line; empty: not there. panel, label: chart of the report and the name
    of its line; an empty panel draws none. share: a number from 0 to 1, shown in percent.
    """

    short: str = ""
    panel: str = ""
    label: str = ""
    share: bool = False


@dataclass(frozen=True)
class Alarm:
    """What is wrong with a run, as logged; stop: whether the run ends."""

    text: str
    stop: bool


class ObjectiveConfig(Settings):
    """Settings of one objective, which declare everything except the loss itself.

    A subclass gives `kind` its own literal and default, and is registered under it. Inputs,
    planner, FLOPs, progress line and report call these methods.

    Attributes:
        scope: "local": the loss is the mean over its samples and no sample sees another, so it runs
            with the encoders, micro-batch by micro-batch. "global": it needs the features of the
            whole batch, and runs once on them; its loss on a rank is scaled so that the average
            over the ranks has the gradient of the global batch's loss.
    """

    scope: ClassVar[Scope] = "global"

    kind: str = Field(description=KIND)
    weight: Weight = Field(1.0, description=WEIGHT)

    def reads(self) -> Reads:
        """Return what forward takes from `Features`; nothing else is computed."""
        raise NotImplementedError

    def build(self, name: str, blocks: HasBlocks) -> Objective:
        """The module that computes the loss; `name` is its key in the configuration."""
        raise NotImplementedError

    def cost(self, shapes: Shapes) -> Cost:
        """Return the FLOPs, bytes and collectives of a step, without those of the encoders."""
        raise NotImplementedError

    def check(self, name: str, blocks: HasBlocks) -> None:
        """Raise ValueError if the model does not support these settings."""

    def stored_width(self, blocks: HasBlocks) -> int | None:
        """Return the width of the stored embeddings of a teacher that are read; None: none are."""
        return None

    def without_blending(self, name: str) -> str | None:
        """Return the override that avoids blended clips; None if the objective reads none."""
        return f"objectives.{name}.weight=0" if "blended" in self.reads().views else None

    def attention_heads(self, blocks: HasBlocks) -> list[int]:
        """Return the head widths of padded attention inside the objective."""
        return []

    def metrics(self, name: str) -> dict[str, Metric]:
        """Return how metrics of forward are displayed, in that order."""
        return {}

    def facts(self, name: str) -> dict[str, str]:
        """Return the settings that the report lists, with their labels."""
        return {"weight": f"weight of {name}"}

    def alarm(self, name: str, step: int, logged: Mapping[str, float]) -> Alarm | None:
        """Judge the metrics of a step, averaged over the ranks; None where nothing is wrong."""
        return None

    def picture_note(self, name: str, feature: Feature) -> str | None:
        """Return the report's note for a picture of a feature that this objective trains."""
        return None

    def noun_sharpness(self, name: str, logged: Mapping[str, float]) -> float | None:
        """Return the softmax sharpness for pictures of nouns and groups, or None.

        logged: the last value of every metric.
        """
        return None

    def segment_temperature(self) -> float | None:
        """Return the temperature for pictures of segments and their two centroids, or None."""
        return None


class Objective(nn.Module):
    """One term of the training loss."""

    def __init__(self, config: ObjectiveConfig, name: str | None = None) -> None:
        super().__init__()
        self.name = name or config.kind

    @property
    def segment_head(self) -> nn.Module | None:
        """From segments [b, T, D] and their mask [b, T] to the logits [b, T] of being own."""
        return None

    def forward(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Unweighted loss (0-dim, at least fp32) and further detached 0-dim metrics by full name.

        The loss always has a graph to the objective's parameters, also where no sample counts. A
        local objective's loss and metrics are means over the samples that it is given.
        """
        raise NotImplementedError


def operand(embeddings: Tensor, products: Products) -> Tensor:
    """Cast embeddings for the products over all pairs, as `objectives.products` says."""
    kind = embeddings.device.type
    if products == "fp32" or not torch.is_autocast_enabled(kind):
        return embeddings
    return embeddings.to(torch.get_autocast_dtype(kind))


KINDS: dict[str, type[ObjectiveConfig]] = {}


def register(kind: type[ObjectiveConfig]) -> None:
    """Register an objective under its `kind`; raises ValueError if another class has it."""
    name = str(kind.model_fields["kind"].default)
    if KINDS.setdefault(name, kind) is not kind:
        raise ValueError(f"objective kind {name!r} is registered as {KINDS[name].__qualname__}")


def kind_names() -> list[str]:
    """Return the registered kinds, then those that only installed packages announce."""
    return list(dict.fromkeys([*KINDS, *plugin_names(OBJECTIVES_GROUP)]))


def kind_class(name: str) -> type[ObjectiveConfig] | None:
    """Return the settings class of a registered or announced kind; None for an unknown one.

    An announced class is imported and registered here. Raises ConfigError where it is not a
    subclass of ObjectiveConfig with this kind.
    """
    if name in KINDS:
        return KINDS[name]
    setting = f"objectives.{name}"
    point = find_plugin(OBJECTIVES_GROUP, name, setting)
    if point is None:
        return None
    found = load_plugin(point, setting)
    is_settings = isinstance(found, type) and issubclass(found, ObjectiveConfig)
    if not (is_settings and found.model_fields["kind"].default == name):
        raise ConfigError(
            f"{setting}: {name!r} ({point.value}) is no subclass of "
            f"svilm_fast.objectives.base.ObjectiveConfig with the default kind {name!r}"
        )
    register(found)
    return found
