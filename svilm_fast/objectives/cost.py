"""What an objective costs: FLOPs, bytes and collectives, as the planner adds them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from svilm_fast.kernels.slices import MAX_SLICES, SLICE_BYTES
from svilm_fast.models.flops import Flops

FP32 = 4
CollectiveKind = Literal["all_gather", "reduce_scatter", "all_reduce"]
NO_FLOPS = Flops()
DESCRIPTION_BYTES = 512  # gathered from every rank by kernels.collectives.check_equal_calls


@dataclass(frozen=True)
class Shapes:
    """Sizes that determine a cost.

    Attributes:
        global_batch: B, pairs of a step over all ranks.
        local_batch: b, pairs that one call of the objective sees on a rank.
        world_size: ranks.
        embed_dim: D.
        width: C, width of a video token's state.
        tokens: L, encoded video tokens of a clip.
        groups: G.
        segments: T.
        nouns: K, noun slots of a caption.
        trained_towers: how many of the two towers pass gradients, 0 to 2.
        unit: whether groups and nouns have length 1.
        on_gpu: whether the kernels run.
        masked_sources: whether clips of one source video are no negatives of each other.
        workspace_bytes: bound of temporary memory; None: the op's own.
        crop_tokens: encoded tokens of all small crops of a clip.
        patch_numbers: pixels of a video token times their colours.
    """

    global_batch: int
    local_batch: int
    world_size: int
    embed_dim: int
    width: int
    tokens: int
    groups: int
    segments: int
    nouns: int
    trained_towers: int = 2
    unit: bool = True
    on_gpu: bool = False
    workspace_bytes: int | None = None
    masked_sources: bool = False
    crop_tokens: int = 0
    patch_numbers: int = 0


@dataclass(frozen=True)
class Sent:
    """`calls` collectives of one kind with `size` bytes in total; what: the tensor."""

    what: str
    kind: CollectiveKind
    size: float
    calls: int


@dataclass(frozen=True)
class Cost:
    """Cost of an objective in one step.

    Attributes:
        flops: forward and backward over the global batch.
        recomputed: FLOPs over the global batch that backward recomputes.
        kept: bytes on one rank from forward to backward, without the features.
        workspace: temporary bytes on one rank inside forward or backward.
        sent: its collectives.
    """

    flops: Flops = NO_FLOPS
    recomputed: int = 0
    kept: float = 0.0
    workspace: float = 0.0
    sent: tuple[Sent, ...] = ()


def slices(shapes: Shapes, width: int) -> int:
    """Parts in which `kernels.slices` gathers fp32 rows of `width` numbers a pair."""
    if shapes.world_size == 1:
        return 1
    size = FP32 * width * shapes.global_batch
    return max(1, min(MAX_SLICES, size // SLICE_BYTES, shapes.local_batch))


def pairwise_flops(shapes: Shapes, rows: int, columns: int) -> Flops:
    """Dot products of texts and videos; backward has one product for each trained tower."""
    forward = 2 * rows * shapes.embed_dim * columns
    return Flops(forward, forward * shapes.trained_towers)


def gathered_bytes(shapes: Shapes, width: int) -> float:
    """Rows of all ranks with `width` fp32 numbers a pair, and their gradient before the scatter."""
    return 0.0 if shapes.world_size == 1 else float(2 * FP32 * shapes.global_batch * width)


def gathered_rows(shapes: Shapes, what: str, width: int, *between: Sent) -> tuple[Sent, ...]:
    """Collectives of a symmetric InfoNCE over all ranks that gathers `what`; none for one rank.

    between: further collectives, after the check of the calls.
    """
    if shapes.world_size == 1:
        return ()
    pairs, parts = shapes.global_batch, slices(shapes, width)
    size, column = float(FP32 * pairs * width), float(FP32 * pairs)
    check = float(DESCRIPTION_BYTES * shapes.world_size)
    return (
        Sent("check of the calls", "all_gather", check, 1),
        *between,
        Sent(what, "all_gather", size, parts),
        Sent("column maxima and sums", "all_reduce", 2 * column, 2),
        Sent("gradient of the columns", "all_reduce", column, 1),
        Sent(f"gradient of the {what}", "reduce_scatter", size, parts),
    )
