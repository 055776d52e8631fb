"""Activation memory of a training pass: the towers' own costs, in the order of a step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from svilm_fast.models.activation_cost import PassRequest, text_pass, video_pass
from svilm_fast.models.locking import locked_levels, trained_layers
from svilm_fast.models.teacher import TEACHER_OUTPUTS
from svilm_fast.train.plan.workload import Workload


@dataclass(frozen=True)
class Activations:
    """Bytes of a pass of some pairs through both encoders, without the parameters' gradients.

    Attributes:
        saved: kept for backward, by part.
        peak: the most that is alive between the start of forward and the end of backward.
        forward: the most that a pass without a graph holds.
    """

    saved: dict[str, float]
    peak: float
    forward: float

    @property
    def total(self) -> float:
        """All bytes that are kept for backward."""
        return sum(self.saved.values())


def activations(
    workload: Workload, pairs: int, *, checkpoint_video: bool, checkpoint_text: bool
) -> Activations:
    """Bytes of a training pass of `pairs` pairs on one rank."""
    config, reads = workload.config, workload.reads
    # Checkpointing recomputes only layers that have a backward.
    checkpoint_video = checkpoint_video and trained_layers(config.video) > 0
    checkpoint_text = checkpoint_text and trained_layers(config.text) > 0
    request = PassRequest(pairs, workload.precision, config.model.attention, workload.on_gpu)
    videos = [
        video_pass(
            reads.shown(view, config.video),
            replace(request, pairs=pairs * reads.clips(view)),
            tokens=workload.tokens_of(reads.shown(view, config.video)),
            groups=workload.groups,
            outputs=reads.outputs(view),
            checkpointed=checkpoint_video,
        )
        for view in (() if config.data.video_embeddings else sorted(reads.views))
    ]
    # The teacher has no graph, and runs when the views are done.
    taught = video_pass(
        config.video.model_copy(update={"lock": True}),
        request,
        tokens=workload.tokens,
        groups=workload.groups,
        outputs=TEACHER_OUTPUTS,
        checkpointed=False,
    )
    teacher = max(taught.forward, taught.embedding) if reads.teacher else 0.0
    lengths = list(workload.text_lengths.values())
    text = text_pass(config.text, request, lengths, checkpointed=checkpoint_text)
    kept, dropped = _weight_copies(workload, checkpoint_video, checkpoint_text)
    saved = {"bf16 copies of weights": kept} if kept else {}
    for run in (*videos, text):
        for name, size in run.saved.items():
            saved[name] = saved.get(name, 0.0) + size
    alive = sum(saved.values())
    forward = max([*(max(run.forward, run.embedding) for run in (*videos, text)), teacher])
    # Without checkpointing the temporaries of forward are what it keeps.
    moments = [
        alive + teacher,
        alive + dropped + (text.forward if checkpoint_text else 0.0),
        alive + text.backward,
    ]
    # Backward runs in reverse: texts first, then the videos from the last to the first.
    alive -= text.total
    moments.append(alive + dropped + text.locked)
    if videos:
        moments.append(alive + dropped + (videos[-1].forward if checkpoint_video else 0.0))
        start = max(videos[-1].embedding, videos[-1].locked)
        made = 0.0 if len(videos) > 1 else kept  # the first video copies the weights
        moments.append(alive - videos[-1].total - made + start)
    moments.append(alive + _embedding_gradients(workload))
    pending = 0.0
    for run in reversed(videos):
        moments.append(alive + pending + run.backward)
        alive -= run.total
        # The weight gradients of one view are held until those of the other are added.
        pending = float(workload.parameters.products_video * workload.precision.compute)
    return Activations(saved, max(moments), forward + kept + dropped)


def _weight_copies(workload: Workload, video: bool, text: bool) -> tuple[float, float]:
    """Bytes of autocast's weight copies: kept for backward, and held during forward only.

    Checkpointed blocks free their copies after forward and recreate them block by block.
    """
    if not workload.precision.copies_weights:
        return 0.0, 0.0
    sizes, size = workload.parameters, workload.precision.compute
    dropped = size * (sizes.products_video * video + sizes.products_text * text)
    every = size * (sizes.products_video + sizes.products_text + sizes.products_other)
    return float(every - dropped), float(dropped)


def _embedding_gradients(workload: Workload) -> float:
    """Dense gradients of the token embedding: one for captions, one for nouns, and their sum."""
    text, sets = workload.config.text, len(workload.text_lengths)
    if locked_levels(text.lock, text.depth):
        return 0.0
    dense = text.vocab_size * text.width * workload.precision.parameter
    return float(dense * (sets + (sets > 1)))
