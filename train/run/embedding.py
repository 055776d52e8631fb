"""Embeds video files and sentences with the model of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.core.machine import package_version
from svilm_fast.inference.config import DEFAULT_SHARPNESS, PretrainedConfig, ReadingConfig
from svilm_fast.inference.model import PretrainedModel
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.train.run.loaded_run import LoadedRun

VERSIONED = ("svilm-fast", "torch", "tokenizers", "av")


def embed_videos(run: LoadedRun, paths: Sequence[str | Path], *, batch_size: int = 32) -> Tensor:
    """Embed whole video files as the run's evaluation does; see `PretrainedModel.embed_video`."""
    return pretrained(run).embed_video(list(paths), batch_size=batch_size)


def embed_texts(run: LoadedRun, texts: Sequence[str]) -> Tensor:
    """Embed sentences as the run's evaluation does; see `PretrainedModel.embed_text`."""
    return pretrained(run).embed_text(texts)


def dual_encoder(run: LoadedRun) -> DualEncoder:
    """Return both towers of a run. Raises UserError if the task's model has no dual encoder."""
    encoder = getattr(run.model, "encoder", None)
    if not isinstance(encoder, DualEncoder):
        raise UserError(
            f"the model of task {run.config.task.name!r} has no dual encoder, so it cannot embed "
            "videos and texts; take a run of `svilm pretrain`"
        )
    return encoder


def pretrained(run: LoadedRun, card: str = "") -> PretrainedModel:
    """Return the model of a run for use, with the run's own parameters.

    Raises UserError if the task's model has no dual encoder.
    """
    encoder, config = dual_encoder(run), run.config
    settings = PretrainedConfig(
        model=config.model,
        video=config.video,
        text=config.text,
        groups=encoder.video.num_groups > 0,
        reading=ReadingConfig.of(config.data),
        sharpness=noun_sharpness(run),
        step=run.step,
        weights=run.weights.value,
        versions={name: package_version(name) or "not installed" for name in VERSIONED},
    )
    return PretrainedModel(encoder, settings, run.tokenizer, card)


def noun_sharpness(run: LoadedRun) -> float:
    """Return the last logged sharpness of the nouns' softmax over the groups."""
    from svilm_fast.report.curves import read_metrics  # imports matplotlib

    series = read_metrics(run.files.metrics) if run.files.metrics.is_file() else {}
    logged = {name: float(values[-1]) for name, (_, values) in series.items()}
    objectives = run.config.objectives.active_first()
    found = (each.noun_sharpness(name, logged) for name, each in objectives.items())
    return next((sharpness for sharpness in found if sharpness is not None), DEFAULT_SHARPNESS)
