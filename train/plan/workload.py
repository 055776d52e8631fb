"""The input of a plan (`Workload`) and its result (`Choice`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from svilm_fast.core.errors import ConfigError
from svilm_fast.models.config import VideoConfig
from svilm_fast.models.flops import encoded_tokens
from svilm_fast.models.grouping_block import TokenAssigner
from svilm_fast.models.precision import ELEMENT_SIZES, ElementSizes
from svilm_fast.objectives.base import Scope
from svilm_fast.objectives.cost import Cost
from svilm_fast.objectives.features import Reads
from svilm_fast.objectives.flops import StepFlops, shapes_of
from svilm_fast.tasks.base import Task, task_of
from svilm_fast.tasks.head_cost import HeadCost
from svilm_fast.train.config.deepspeed import local_batch_of
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.plan.flops import flops_of_step

Reduction = Literal["coalesce", "boundary"]


@dataclass(frozen=True)
class Parameters:
    """Elements of a model.

    Attributes:
        total: all parameters.
        trained: those with a gradient.
        products_video: trained ones of matrix products in the video blocks. Autocast keeps bf16
            copies of products' weights; copies of frozen ones are freed at once.
        products_text: the same in the text blocks.
        products_other: the same outside the blocks.
        persistent: those that ZeRO 3 keeps whole on every rank.
        largest: the largest trained parameter.
        largest_group: the largest group of the optimizer.
        teacher: those of the teacher, which are no part of the model.
        teacher_parameters: number of its tensors.
    """

    total: int
    trained: int
    products_video: int
    products_text: int
    products_other: int
    persistent: int
    largest: int
    largest_group: int
    teacher: int = 0
    teacher_parameters: int = 0


@dataclass(frozen=True)
class Choice:
    """What a plan decides.

    micro_batch: pairs of a rank in one pass of the encoders; None is the whole local batch, without
    gradient cache. reduction: how the cache's gradients are reduced. workspace_bytes: bound of a
    loss's temporary memory; None is the default of its op.
    """

    zero_stage: int
    checkpoint_video: bool
    checkpoint_text: bool
    micro_batch: int | None = None
    reduction: Reduction = "coalesce"
    workspace_bytes: int | None = None


@dataclass(frozen=True)
class ObjectiveCost:
    """The cost of the objective called `name`."""

    name: str
    scope: Scope
    cost: Cost


@dataclass(frozen=True)
class Workload:
    """A configuration on a number of ranks of one kind of device."""

    config: RunConfig
    world_size: int
    local_batch: int
    parameters: Parameters
    on_gpu: bool
    head: HeadCost | None = None  # of a task with its own loss

    @property
    def precision(self) -> ElementSizes:
        """Bytes of an element."""
        return ELEMENT_SIZES[self.config.training.precision]

    @property
    def stores_features(self) -> bool:
        """Whether a head is trained on stored features, and no tower runs."""
        return self.head is not None and self.head.stored_bytes > 0

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip as the loader gives it: frames and small views, or what is stored."""
        video, data = self.config.video, self.config.data
        if self.head is not None and self.head.stored_bytes:
            return self.head.stored_bytes
        if data.video_embeddings is not None:
            return 4 * self.config.model.embed_dim
        return video.frames * video.image_size**2 * 3 + self.crop_bytes

    @property
    def crop_bytes(self) -> int:
        """Bytes of the small views of a clip."""
        reads = self.reads
        if reads.crops is None:
            return 0
        return reads.crops.count * reads.crops.frames * reads.crops.image_size**2 * 3

    @property
    def reads(self) -> Reads:
        """What the active objectives read, or the head of a task with its own loss."""
        return self.config.objectives.reads() if self.head is None else self.head.reads

    @property
    def flops(self) -> StepFlops:
        """Forward and backward of the global batch."""
        if self.head is not None:
            return self.head.step_flops(self.config, self.config.training.global_batch)
        return flops_of_step(self.config)

    def costs(
        self, workspace_bytes: int | None = None, *, pairs: int | None = None
    ) -> list[ObjectiveCost]:
        """The cost of every active objective.

        workspace_bytes: bound of a loss's temporary memory; None: the op's own. pairs: what a local
        objective sees at once; None: the local batch.
        """
        if self.head is not None:
            seen, batch = pairs or self.local_batch, self.config.training.global_batch
            kept = self.head.kept * seen + self.head.kept_once
            cost = Cost(self.head.flops * batch, kept=kept)
            return [ObjectiveCost("head", "local", cost)]
        found = []
        for name, objective in self.config.objectives.active().items():
            local = pairs if objective.scope == "local" and pairs is not None else self.local_batch
            shapes = shapes_of(
                self.config,
                global_batch=self.config.training.global_batch,
                nouns=self.config.data.nouns.per_caption,
                local_batch=local,
                world_size=self.world_size,
                on_gpu=self.on_gpu,
                workspace_bytes=workspace_bytes,
                masked_sources=self.config.data.same_source == "mask",
            )
            found.append(ObjectiveCost(name, objective.scope, objective.cost(shapes)))
        return found

    @property
    def tokens(self) -> int:
        """Encoded video tokens of a clip; the largest number if clips draw their drop rate."""
        return self.tokens_of(self.config.video)

    @staticmethod
    def tokens_of(video: VideoConfig) -> int:
        """The same of clips of other sizes."""
        if video.drop.rate_max is None:
            return encoded_tokens(video)
        least = video.drop.model_copy(update={"rate_max": None})
        return encoded_tokens(video.model_copy(update={"drop": least}))

    @property
    def groups(self) -> int:
        """Group tokens in the encoder."""
        video = self.config.video
        # A task with its own loss keeps the encoder of pre-training, whose objectives decide.
        return video.num_groups if self.config.objectives.reads().uses_groups(video) else 0

    @property
    def nouns(self) -> int:
        """Noun slots of a caption that are embedded; 0 where no objective reads nouns."""
        return self.config.data.nouns.per_caption if self.reads.nouns else 0

    @property
    def text_lengths(self) -> dict[str, tuple[int, int]]:
        """Sequences of a pair and their padded length, for captions and nouns where in use."""
        if self.head is not None:
            head = self.head
            return {"texts": (head.sequences, head.length)} if head.sequences else {}
        tokenizer, lengths = self.config.data.tokenizer, {}
        if self.reads.texts:
            lengths["captions"] = (1, tokenizer.length)
        if self.nouns:
            lengths["nouns"] = (self.nouns, tokenizer.noun_length)
        return lengths

    def with_batch(self, global_batch: int, world_size: int) -> Workload:
        """The same model with another batch and another number of ranks."""
        training = self.config.training.model_copy(update={"global_batch": global_batch})
        config = self.config.model_copy(update={"training": training})
        local = local_batch_of(config, world_size)
        return replace(self, config=config, world_size=world_size, local_batch=local)


def workload_of(config: RunConfig, world_size: int, *, on_gpu: bool) -> Workload:
    """Count the parameters on the meta device; `config` may hold `auto`.

    Raises ConfigError for a batch that cannot be split, and for a task with its own loss that does
    not tell its cost (`Task.head_cost`) or is asked for micro-batches.
    """
    task = task_of(config)
    head: HeadCost | None = None
    local_batch = local_batch_of(config, world_size)
    if config.task.own_loss:
        head = task.head_cost(ELEMENT_SIZES[config.training.precision])
        if head is None:
            raise ConfigError(
                f"task {config.task.name!r} has its own model and loss, whose cost it does not "
                "tell, so it cannot be planned: replace `auto` (training.micro_batch=null, "
                "deepspeed.zero_stage=1, ...)"
            )
        micro = config.training.micro_batch
        if isinstance(micro, int) and micro < local_batch:
            raise ConfigError(
                f"training.micro_batch={micro}: task {config.task.name!r} has a loss of its own "
                "and no gradient cache; set it to null, and train with a smaller global_batch or "
                "on more ranks"
            )
    return Workload(config, world_size, local_batch, count(config, task), on_gpu, head)


def count(config: RunConfig, task: Task | None = None) -> Parameters:
    """Count the elements of the configured model; allocates nothing."""
    with torch.device("meta"):
        model: Any = (task or task_of(config)).model()
    sizes = [parameter.numel() for parameter in model.parameters()]
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(model, config.optimizer)
    groups = [_elements(group) for group in optimizer.param_groups]
    in_video = in_text = 0
    taught: list[nn.Parameter] = []
    if hasattr(model, "encoder"):  # not in a task on stored features
        video, text = model.encoder.video, model.encoder.text
        in_video, in_text = products(video.blocks), products(text.blocks)
        if video.num_groups:
            in_video += products(video.grouping_blocks)
        if getattr(model, "teacher", None) is not None:
            taught = list(video.parameters())
    threshold = config.deepspeed.persistence_elements
    return Parameters(
        total=sum(sizes),
        trained=sum(trained),
        products_video=in_video,
        products_text=in_text,
        products_other=products(model) - in_video - in_text,
        persistent=sum(size for size in sizes if size <= threshold),
        largest=max(trained),
        largest_group=max(groups),
        teacher=sum(parameter.numel() for parameter in taught),
        teacher_parameters=len(taught),
    )


def products(module: nn.Module) -> int:
    """Count the trained weights and biases of a module's matrix products."""
    found: list[nn.Parameter] = []
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            found += part.parameters()
        elif isinstance(part, TokenAssigner):
            found += [part.key_weight, part.value_weight]
    return sum(parameter.numel() for parameter in found if parameter.requires_grad)


def _elements(group: dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in group["params"])
