"""Peak memory of a rank: the resident state plus the largest phase of a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from svilm_fast.data.pipeline import LoaderMemory, loader_memory
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.activations import activations
from svilm_fast.train.plan.loss_memory import feature_bytes, loss_bytes
from svilm_fast.train.plan.states import gradients, resting
from svilm_fast.train.plan.workload import Choice, Workload

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, by part. resting: resident all the time. phases: what each phase adds."""

    resting: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def base(self) -> float:
        """Bytes of the resident state."""
        return sum(self.resting.values())

    @property
    def peak(self) -> float:
        """The largest number of bytes at any time."""
        return self.base + max(sum(parts.values()) for parts in self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase with the peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def table(self) -> list[str]:
        """Return the lines of a table in GiB."""
        lines = ["always"]
        lines += [_line(name, size) for name, size in self.resting.items()]
        for phase, parts in self.phases.items():
            mark = " <- peak" if phase == self.peak_phase else ""
            total = sum(parts.values())
            lines.append(f"{phase}: {(self.base + total) / GIB:,.3f} GiB with the above{mark}")
            lines += [_line(name, size) for name, size in parts.items() if size]
        return lines


def _line(name: str, size: float) -> str:
    return f"  {name:28} {size / GIB:>10,.3f} GiB"


def memory(workload: Workload, choice: Choice) -> Memory:
    """Estimate the peak of a training step on one rank.

    Only tensors are counted. The margin of `chooser` covers the device's context, library buffers,
    fragmentation, and on a CPU the interpreter and the loader.
    """
    always = resting(workload, choice) | _inputs(workload)
    grads = gradients(workload, choice)
    micro = choice.micro_batch or workload.local_batch
    passed = activations(
        workload,
        micro,
        checkpoint_video=choice.checkpoint_video,
        checkpoint_text=choice.checkpoint_text,
    )
    features = feature_bytes(workload)
    loss = loss_bytes(workload, choice.workspace_bytes, "global", micro)
    local_loss = loss_bytes(workload, choice.workspace_bytes, "local", micro)
    local = {"local losses": local_loss} if local_loss else {}
    step = {
        "gradients": grads.shard or grads.full,
        "optimizer's copies": grads.step,
    }
    if choice.micro_batch is None:
        phases = {
            "forward and loss": {
                "activations": passed.total,
                "loss": loss,
                **local,
            },
            "backward, start": {
                "activations and temporaries": passed.peak,
                **local,
                "reduction bucket": grads.bucket,
            },
            # Half of the activations are freed when half of the gradients exist.
            "backward, middle": {
                "activations": 0.5 * passed.total + (passed.peak - passed.total),
                "gradients": 0.5 * grads.full + grads.shard,
                "reduction bucket": grads.bucket,
            },
            "backward, end": {
                "gradients": grads.full + grads.shard,
                "reduction bucket": grads.bucket,
            },
        }
    else:
        reduced_on_the_way = choice.reduction == "boundary" and choice.zero_stage == 2
        kept = {"embeddings and their gradient": 2 * features}
        phases = {
            "embedding": {
                "embeddings": features,
                "forward of a micro-batch": passed.forward,
                **local,
            },
            "loss": {**kept, "loss": loss},
            "replay": {
                **kept,
                "activations of a micro-batch": passed.peak,
                **local,
                "gradients": grads.full + grads.shard * reduced_on_the_way,
                "reduction bucket": grads.bucket * (choice.reduction == "boundary"),
            },
            "reduction": {
                **kept,
                "gradients": grads.full + grads.shard,
                "reduction bucket": grads.bucket,
            },
        }
    return Memory(always, phases | {"optimizer step": step})


def loader_of(workload: Workload) -> LoaderMemory:
    """Return the loader's memory on the host, of one rank; the start of a run checks the same."""
    size, batch = workload.clip_bytes, workload.local_batch
    found = loader_memory(workload.config.data, size, batch)
    # Features of unequal length are joined without shared memory.
    return replace(found, shared=0) if workload.stores_features else found


def loader_bytes(workload: Workload, per_node: int) -> dict[str, dict[str, int]]:
    """Return the bytes of the loader's memory on the host, of one rank and of a full node."""
    rank = asdict(loader_of(workload))
    ranks = min(per_node, workload.world_size)
    return {"rank": rank, "node": {name: ranks * size for name, size in rank.items()}}


def loader_lines(workload: Workload, per_node: int) -> list[str]:
    """Return the lines of a table of the loader's memory by rank and node."""
    found, data = loader_bytes(workload, per_node), workload.config.data
    settings = f"data.workers={data.workers} unit={data.unit} prefetch={data.prefetch}"
    lines = [f"loader, memory of the host ({settings})"]
    for label, name in (("shared (/dev/shm)", "shared"), ("private", "private")):
        node = found["node"][name] / GIB
        lines.append(f"{_line(label, found['rank'][name])} a rank, {node:,.3f} GiB a node")
    return lines


def not_counted(config: RunConfig) -> list[str]:
    """Return notes on settings that the estimate does not take into account."""
    if config.training.compile == "none":
        return []
    return [
        "note: training.compile=blocks is planned as if it were off: predicted memory and time do "
        "not include what inductor fuses or recomputes in backward, nor the memory that compiling "
        "takes in the first steps"
    ]


def _inputs(workload: Workload) -> dict[str, float]:
    """Return the bytes of the clips of the local batch, for all views."""
    views = workload.reads.views - {"crops"}
    # A blended view is a copy of its own. On a CPU the loader's clean clips stay in memory as well.
    copies = len(views) if workload.on_gpu else 1 + ("blended" in views)
    if workload.stores_features:
        return {"stored features": float(workload.local_batch * workload.clip_bytes)}
    stored = workload.config.data.video_embeddings is not None
    name = "stored embeddings" if stored else "clips as uint8"
    whole, crops = workload.clip_bytes - workload.crop_bytes, workload.crop_bytes
    return {name: float(workload.local_batch * (whole * copies + crops))}
