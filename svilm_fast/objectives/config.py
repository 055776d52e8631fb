"""The block `objectives`: objectives by name, and what all of them share."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import nn

from svilm_fast.core.settings import Count, Settings
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig, with_preset
from svilm_fast.objectives.base import (
    KINDS,
    HasBlocks,
    Metric,
    ObjectiveConfig,
    Products,
    Scope,
    kind_class,
    kind_names,
)
from svilm_fast.objectives.contrast import ContrastConfig
from svilm_fast.objectives.features import Reads
from svilm_fast.objectives.grounding import GroundingConfig
from svilm_fast.objectives.temporal import TemporalConfig

# Names that an objective cannot have: attributes of the module that holds the objectives.
TAKEN = frozenset({*dir(nn.Module()), "active", "modules_by_name", "local_terms"})


def _member(value: Any) -> Any:
    """Validate a member of the union of all objectives; its `kind` selects the class."""
    if not isinstance(value, dict):
        return value
    return KINDS[value["kind"]].model_validate(value)


class ObjectivesConfig(Settings):
    """The objectives by name; a weight of 0 removes the cost of its objective.

    Those of S-ViLM are on by default. Further ones are keys of their own: the name of a
    kind, or any other name with `kind: NAME` among its settings.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, BeforeValidator(_member)]]

    contrast: ContrastConfig = Field(default_factory=lambda: ContrastConfig())
    grounding: GroundingConfig = Field(default_factory=lambda: GroundingConfig())
    temporal: TemporalConfig = Field(default_factory=lambda: TemporalConfig())
    workspace_bytes: Count | Literal["auto"] | None = Field(
        None,
        description="bound of a loss's temporary memory; null: the op's own; auto: by svilm plan",
    )
    # docs/decisions/0003-loss-products.md: fp32 costs under 3 % of a step up to about 10^5 pairs.
    products: Products = Field(
        "fp32", description="autocast rounds embeddings to its dtype for the losses over all pairs"
    )

    @classmethod
    def known_keys(cls) -> list[str]:
        """The fields, and every kind."""
        return list(dict.fromkeys([*cls.model_fields, *kind_names()]))

    @classmethod
    def block_at(cls, key: str, value: Any) -> type[Settings] | None:
        """Return the settings class of an objective that is not a field, or None."""
        kind = value.get("kind", key) if isinstance(value, Mapping) else key
        return kind_class(kind) if isinstance(kind, str) else None

    @classmethod
    def problem_of(cls, key: str, value: Any) -> str:
        """Describe the unknown kind of an objective, with the nearest known one."""
        if isinstance(value, Mapping) and "kind" in value:
            path, asked, known = f"objectives.{key}.kind", str(value["kind"]), kind_names()
            what = f"{path}: there is no objective {asked!r}"
        else:
            path, asked, known = "", key, cls.known_keys()
            what = f"unknown key 'objectives.{key}'"
        near = difflib.get_close_matches(asked, known, n=1)
        if near:
            shown = near[0] if path else f"objectives.{near[0]}"
            return f"{what}: did you mean {shown!r}?"
        hint = "" if path else f"; another name needs objectives.{key}.kind"
        return f"{what}: known are {', '.join(known)}{hint}"

    @model_validator(mode="before")
    @classmethod
    def _say_the_kind(cls, values: Any) -> Any:
        """Add the `kind` that the key implies; refuse unknown kinds and invalid names."""
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for name, value in values.items():
            if name in cls.model_fields or isinstance(value, ObjectiveConfig):
                continue
            if not isinstance(name, str) or cls.block_at(name, value) is None:
                raise ValueError(cls.problem_of(str(name), value))
            if not isinstance(value, dict):
                raise ValueError(f"objectives.{name} is a block of settings, found {value!r}")
            if not name.isidentifier() or name.startswith("_") or name in TAKEN:
                raise ValueError(f"{name!r} cannot name an objective: it must be a new Python name")
            filled[name] = {"kind": name} | value
        return filled

    @model_serializer(mode="wrap")
    def _without_implied_kinds(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a `kind` that the key implies."""
        tree = dump(self)
        for name, value in tree.items():
            if isinstance(value, dict) and value.get("kind") == name:
                del value["kind"]
        return tree

    @property
    def workspace(self) -> int | None:
        """The bound of temporary memory that the objectives are built with."""
        return None if self.workspace_bytes == "auto" else self.workspace_bytes

    def all(self) -> dict[str, ObjectiveConfig]:
        """Return every objective by name, including weight 0: S-ViLM's first, then the others."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        found |= self.model_extra or {}
        return {name: value for name, value in found.items() if isinstance(value, ObjectiveConfig)}

    def active_first(self) -> dict[str, ObjectiveConfig]:
        """Return every objective by name, those with a weight above 0 first."""
        return self.active() | self.all()

    def active(self, scope: Scope | None = None) -> dict[str, ObjectiveConfig]:
        """Return the objectives with a weight above 0, of one scope or of both."""
        return {
            name: objective
            for name, objective in self.all().items()
            if objective.weight > 0 and scope in (None, objective.scope)
        }

    def reads(self, scope: Scope | None = None) -> Reads:
        """Return the union of what the active objectives read."""
        together = Reads()
        for objective in self.active(scope).values():
            together |= objective.reads()
        return together

    def stored_width(self, blocks: HasBlocks) -> int | None:
        """Return the width of the stored embeddings of a teacher that objectives read, or None.

        Raises ValueError if two objectives read embeddings of different widths.
        """
        found = {name: each.stored_width(blocks) for name, each in self.active().items()}
        widths = {name: width for name, width in found.items() if width is not None}
        if len(set(widths.values())) > 1:
            given = ", ".join(f"{name}: {width}" for name, width in widths.items())
            raise ValueError(f"objectives read a teacher's embeddings of different widths: {given}")
        return next(iter(widths.values()), None)

    def metrics(self) -> dict[str, Metric]:
        """Return the displayed metrics of the active objectives: losses first."""
        active = self.active()
        found = {f"loss_{name}": Metric(name, "Loss parts", name) for name in active}
        for name, objective in active.items():
            found |= objective.metrics(name)
        return found

    def check(self, blocks: HasBlocks) -> None:
        """Raise ValueError if all weights are 0 or the model does not support an objective."""
        if not self.active():
            raise ValueError("all objective weights are 0: set at least one above 0")
        self.stored_width(blocks)
        for name, objective in self.active().items():
            objective.check(name, blocks)
            reads = objective.reads()
            only_local = {"small crops": "crops" in reads.views, "a teacher": reads.teacher}
            for what, read in only_local.items():
                if read and objective.scope != "local":
                    raise ValueError(
                        f"objectives.{name} is global and reads {what}, which is only there with "
                        "the encoders: make its scope local"
                    )
            if "crops" in reads.views and reads.crops is None:
                raise ValueError(f"objectives.{name} reads small crops without their sizes")
        together = self.reads()
        if together.spread and ("clean", "tokens") not in together.video:
            raise ValueError("the measures of collapse need the tokens of the clean clips")


class SViLMConfig(Settings):
    """The blocks that `build_model` reads; a run's configuration holds the same four."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    video: VideoConfig = Field(default_factory=VideoConfig)
    text: TextConfig = Field(default_factory=TextConfig)
    objectives: ObjectivesConfig = Field(default_factory=lambda: ObjectivesConfig())

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values


class ModelBlocks(HasBlocks, Protocol):
    """The configuration blocks that a model with its objectives is built from."""

    @property
    def objectives(self) -> ObjectivesConfig: ...
