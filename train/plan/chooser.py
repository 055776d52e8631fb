"""Choose micro-batch, checkpointing, ZeRO stage, reduction and workspace for a memory size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from svilm_fast.core.errors import UserError
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.devices import Device
from svilm_fast.train.plan.links import Links
from svilm_fast.train.plan.memory import GIB, memory
from svilm_fast.train.plan.step_time import step_time
from svilm_fast.train.plan.workload import Choice, Reduction, Workload

# Memory that stays free: a share for fragmentation and errors of the estimate, and a fixed part for
# the device's context and library buffers (GPU) or the interpreter (CPU).
FREE_SHARE = 0.10
FIXED = {True: 1.5 * GIB, False: 0.4 * GIB}
# Stage 0 is never chosen: it keeps all of the optimizer's state on every rank and saves one gather.
STAGES = (1, 2, 3)
# A less simple choice must be predicted to be at least this much faster. Predictions are right
# within a factor of 2 (docs/scaling.md), so a smaller gain may not exist.
GAIN = 0.10
WORKSPACES = (None, 64 << 20)


class DoesNotFitError(UserError):
    """No choice fits the memory; the message names what would fit."""


@dataclass(frozen=True)
class Option:
    """A choice with its predicted peak bytes, the phase of that peak, and seconds of a step."""

    choice: Choice
    peak: float
    phase: str
    seconds: float

    @property
    def complexity(self) -> tuple[int, bool, int]:
        """Order of simplicity: ZeRO stage, then gradient cache, then checkpointed towers."""
        choice = self.choice
        checkpointed = choice.checkpoint_video + choice.checkpoint_text
        return choice.zero_stage, choice.micro_batch is not None, checkpointed

    def describe(self) -> str:
        """Return the settings on one line."""
        choice = self.choice
        parts = [
            f"zero_stage={choice.zero_stage}",
            f"micro_batch={choice.micro_batch or 'null'}",
            f"video.checkpoint_activations={str(choice.checkpoint_video).lower()}",
            f"text.checkpoint_activations={str(choice.checkpoint_text).lower()}",
        ]
        if choice.micro_batch is not None:
            parts.append(f"gradient_reduction={choice.reduction}")
        if choice.workspace_bytes is not None:
            parts.append(f"workspace_bytes={choice.workspace_bytes}")
        return " ".join(parts)


@dataclass(frozen=True)
class Decision:
    """The chosen option with its reason, and the rejected options with theirs."""

    chosen: Option
    why: str
    rejected: list[tuple[Option, str]]
    usable: float
    considered: int

    def reasons(self) -> list[str]:
        """Lines for people."""
        chosen, why = self.chosen, self.why
        if self.considered == 1:
            why = (
                "the recipe leaves nothing open; set deepspeed.zero_stage, training.micro_batch or "
                "video.checkpoint_activations to auto to have it chosen"
            )
        lines = [
            f"chosen: {chosen.describe()}",
            f"  needs {chosen.peak / GIB:.2f} GiB ({chosen.phase}) of {self.usable / GIB:.2f} GiB "
            f"usable; {why}",
        ]
        return lines + [f"rejected: {o.describe()}\n  {why}" for o, why in self.rejected]


def usable_bytes(total: float, *, on_gpu: bool) -> float:
    """Return the part of a device's memory that tensors may take."""
    return total * (1 - FREE_SHARE) - FIXED[on_gpu]


def fixed_choice(config: RunConfig, world_size: int, local_batch: int) -> Choice:
    """Return the settings as a choice; `auto` means stage 1, checkpointing, the whole batch."""
    given = config.training.micro_batch
    stage, reduction = config.deepspeed.zero_stage, config.distributed.gradient_reduction
    whole = given in (None, "auto") or (isinstance(given, int) and given >= local_batch)
    stage_number = 1 if stage == "auto" else int(stage)
    workspace = config.objectives.workspace_bytes
    return Choice(
        zero_stage=stage_number,
        checkpoint_video=bool(config.video.checkpoint_activations),
        checkpoint_text=bool(config.text.checkpoint_activations),
        micro_batch=None if whole else int(given),  # type: ignore[arg-type]
        reduction=_possible_reduction(config, stage_number, reduction),
        workspace_bytes=None if workspace == "auto" else workspace,
    )


def options(workload: Workload) -> Iterator[Choice]:
    """Yield all choices that the settings leave open."""
    config, local = workload.config, workload.local_batch
    stage = config.deepspeed.zero_stage
    stages = STAGES if stage == "auto" else (int(stage),)
    given = config.training.micro_batch
    if workload.head is not None:
        sizes: list[int | None] = [None]  # no gradient cache
    elif given == "auto":
        halves = [2**power for power in range(local.bit_length())]
        sizes = [None, *dict.fromkeys(math.ceil(local / n) for n in halves[1:])]
    else:
        sizes = [None if given is None or given >= local else given]
    video, text = config.video.checkpoint_activations, config.text.checkpoint_activations
    pairs = [(v, t) for v, t in product(_open(video), _open(text)) if v or not t or video != "auto"]
    workspace = config.objectives.workspace_bytes
    spaces = WORKSPACES if workspace == "auto" else (workspace,)
    for zero_stage, size, (of_video, of_text), space in product(stages, sizes, pairs, spaces):
        for reduction in _reductions(config, zero_stage, size):
            yield Choice(zero_stage, of_video, of_text, size, reduction, space)


def choose(workload: Workload, device: Device, links: Links, memory_bytes: float) -> Decision:
    """Return the simplest choice that fits and is about as fast as the fastest that fits.

    About as fast: the fastest is predicted to gain at most `GAIN`. Raises DoesNotFitError, which
    names the least requirement and what would satisfy it.
    """
    usable = usable_bytes(memory_bytes, on_gpu=device.on_gpu)
    found = []
    for choice in options(workload):
        estimate = memory(workload, choice)
        seconds = step_time(workload, choice, links, device.peak).total
        found.append(Option(choice, estimate.peak, estimate.peak_phase, seconds))
    # At equal speed: the simpler first, then the larger micro-batch, then coalescing.
    found.sort(key=lambda o: (o.seconds, o.complexity, -(o.choice.micro_batch or 0)))
    fitting = [option for option in found if option.peak <= usable]
    if not fitting:
        raise DoesNotFitError(_what_would_fit(workload, found, usable, memory_bytes))
    fastest = fitting[0]
    # `min` takes the first of equals, which is the fastest of them.
    close = [option for option in fitting if _gain(fastest, option) <= GAIN]
    chosen = min(close, key=lambda option: option.complexity)
    why = "predicted to be the fastest that fits"
    if chosen.complexity != fastest.complexity:
        why = f"the simplest that fits; a faster one is predicted to gain no more than {GAIN:.0%}"
    place = found.index(chosen)
    before = [
        option
        for number, option in enumerate(found)
        if option.peak > usable
        and (
            number < place
            or (option.complexity < chosen.complexity and _gain(fastest, option) <= GAIN)
        )
    ]
    rejected = [*_too_large(before, usable), *_other_stages(chosen, fitting)]
    return Decision(chosen, why, rejected, usable, len(found))


def _gain(faster: Option, slower: Option) -> float:
    """Return the time that the slower option adds, as a share of the faster one's time."""
    return slower.seconds / faster.seconds - 1


def _too_large(options: list[Option], usable: float) -> list[tuple[Option, str]]:
    """Return the option of each family that comes closest to fitting, with its reason."""
    nearest: dict[Choice, Option] = {}
    for option in options:
        family = replace(option.choice, micro_batch=None, workspace_bytes=None)
        if family not in nearest or option.peak < nearest[family].peak:
            nearest[family] = option
    return [
        (
            option,
            f"needs {option.peak / GIB:.2f} GiB ({option.phase}), "
            f"{(option.peak - usable) / GIB:.2f} GiB too much",
        )
        for option in nearest.values()
    ]


def _other_stages(chosen: Option, fitting: list[Option]) -> list[tuple[Option, str]]:
    """Return the fastest option that fits and the best option of every other ZeRO stage."""
    seen = dict[int, Option]()
    for option in fitting:
        faster = option.seconds < chosen.seconds
        if faster or option.choice.zero_stage != chosen.choice.zero_stage:
            seen.setdefault(option.choice.zero_stage, option)
    explained = []
    for option in seen.values():
        why = f"predicted to take {option.seconds / chosen.seconds:.3f} times as long"
        if option.seconds < chosen.seconds:
            gain = _gain(option, chosen)
            why = (
                f"predicted to be only {gain:.1%} faster; a choice that is less simple (ZeRO "
                f"stage, gradient cache, checkpointing) must gain more than {GAIN:.0%}"
            )
        explained.append((option, why))
    return explained


def _open(setting: bool | str) -> tuple[bool, ...]:
    return (False, True) if setting == "auto" else (bool(setting),)


def _reductions(config: RunConfig, stage: int, size: int | None) -> tuple[Reduction, ...]:
    wanted = config.distributed.gradient_reduction
    if size is None or wanted != "auto" or stage < 2:
        return (_possible_reduction(config, stage, wanted),)
    if config.training.precision == "bf16":
        return ("boundary",)  # coalesced gradients would add up in bf16
    return ("coalesce", "boundary")


def _possible_reduction(config: RunConfig, stage: int, wanted: str) -> Reduction:
    """DeepSpeed cannot coalesce in stage 0, nor in stage 1 with bf16 parameters."""
    impossible = stage == 0 or (stage == 1 and config.training.precision == "bf16")
    return "boundary" if wanted == "boundary" or impossible else "coalesce"


def _what_would_fit(
    workload: Workload, found: list[Option], usable: float, memory_bytes: float
) -> str:
    least = min(found, key=lambda option: option.peak)
    training = workload.config.training
    needed = (least.peak + FIXED[workload.on_gpu]) / (1 - FREE_SHARE)
    hints = [f"memory of {needed / GIB:.1f} GiB per rank"]
    batch = training.global_batch
    while batch % 2 == 0 and batch // 2 >= workload.world_size:
        batch //= 2
        smaller = workload.with_batch(batch, workload.world_size)
        if min(memory(smaller, choice).peak for choice in options(smaller)) <= usable:
            hints.append(f"training.global_batch={batch}")
            break
    ranks = workload.world_size
    while ranks < 2**14 and training.global_batch % (2 * ranks) == 0:
        ranks *= 2
        wider = workload.with_batch(training.global_batch, ranks)
        if min(memory(wider, choice).peak for choice in options(wider)) <= usable:
            hints.append(f"{ranks} ranks")
            break
    closed = {
        "training.micro_batch=auto": training.micro_batch != "auto" and workload.head is None,
        "deepspeed.zero_stage=auto": workload.config.deepspeed.zero_stage != "auto",
    }
    if not workload.stores_features:
        for tower in ("video", "text"):
            setting = getattr(workload.config, tower).checkpoint_activations
            closed[f"{tower}.checkpoint_activations=auto"] = setting is False
    opened = [name for name, shut in closed.items() if shut]
    advice = f"; settings that could still help: {', '.join(opened)}" if opened else ""
    return (
        f"global batch {training.global_batch} on {workload.world_size} ranks does not fit "
        f"{memory_bytes / GIB:.2f} GiB per rank ({usable / GIB:.2f} GiB usable): the least is "
        f"{least.peak / GIB:.2f} GiB ({least.phase}) with {least.describe()}; it would fit with "
        f"{' or '.join(hints)}{advice}"
    )
