"""`svilm localize`: features, classification, prediction and evaluation of untrimmed videos."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svilm_fast.commands.options import Device, RunDir, WeightsKind
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.core.text import counted

if TYPE_CHECKING:
    from svilm_fast.data.config import LimitsConfig
    from svilm_fast.data.feature_files import ClipFeatures
    from svilm_fast.tasks.localization.extract import ExtractionSettings
    from svilm_fast.train.config.schema import RunConfig

LONG_FRAMES = 2_000_000
LONG_SECONDS = 7200.0


class FeatureKind(StrEnum):
    """Which output of the video encoder a vector is."""

    EMBEDDING = "embedding"
    POOLED = "pooled"


Features = Annotated[Path, typer.Option(help="folder of features")]
Subset = Annotated[str, typer.Option(help="subset of the annotations")]


def extract(
    videos: Annotated[list[Path], typer.Argument(help="video files, or folders of them")],
    run: RunDir,
    out: Annotated[Path, typer.Option(help="folder for one Parquet file per video")],
    stride: Annotated[int, typer.Option(min=1, help="frames between two vectors")] = 16,
    clip: Annotated[int, typer.Option(min=1, help="frames that a vector sees")] = 16,
    fps: Annotated[float, typer.Option(min=0.01, max=1000, help="frames a second")] = 15.0,
    batch: Annotated[int, typer.Option(min=1, help="clips per call of the encoder")] = 16,
    kind: Annotated[
        FeatureKind,
        typer.Option("--kind", help="embedding shared with text, or the mean token before it"),
    ] = FeatureKind.EMBEDDING,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Compute features of long videos at a stride, with a finished run's video encoder.

    Every frame is decoded once. Stopped at any moment and started again, it continues. Videos that
    cannot be decoded are listed in failed.jsonl.
    """
    from svilm_fast.tasks.localization.extract import FAILED, extract_folder, video_files
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.clip_encoder import ClipEncoder
    from svilm_fast.train.run.loaded_run import load_run

    found = video_files(videos)
    loaded = load_run(run, device=choose_device(device, 0), weights=weights)
    encoder = ClipEncoder(loaded, kind.value)
    report = extract_folder(
        found,
        out,
        encoder,
        extraction_settings(
            loaded.config, stride=stride, clip=clip, fps=fps, batch=batch, features=kind.value
        ),
        encoder.identity(),
        limits=long_limits(loaded.config),
        advance=lambda video: print(f"  {video}", flush=True),
    )
    print(f"{report.written} written, {report.earlier} were there, {len(report.failed)} failed")
    for skip in report.failed[:10]:
        print(f"  {skip.sample}: {skip.reason}: {skip.message}")
    if report.failed:
        print(f"all failed videos: {out / FAILED}")
        raise typer.Exit(1)


def classify(
    features: Features,
    out: Annotated[Path, typer.Option(help="file for the scores")],
    classes: Annotated[
        Path | None, typer.Option(help="class names, one a line; default: the annotations' own")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="run that made the features: compare with prompts")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="ActivityNet JSON: train a softmax layer on a subset")
    ] = None,
    subset: Subset = "training",
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Score the classes of whole videos from their features, in CUHK's format.

    With --annotations a softmax layer is trained on the subset. With --run class names in prompts
    are compared with the features, and no label is needed.
    """
    from svilm_fast.data.feature_files import FeatureFolder
    from svilm_fast.data.formats.activitynet import read_annotations
    from svilm_fast.data.formats.cuhk import write_class_scores
    from svilm_fast.tasks.localization.classify import (
        SoftmaxClassifier,
        pooled_features,
        prompt_scores,
        prompts,
        read_class_names,
    )
    from svilm_fast.tasks.localization.extract import written_features

    if (run is None) == (annotations is None):
        raise UserError("give either --run (prompts) or --annotations (a softmax layer)")
    check_output(out, *(path for path in (classes, annotations) if path))
    if next(written_features(features), None) is None:
        raise UserError(
            f"{features}: holds no .parquet features; write some with `svilm localize extract`"
        )
    # One video's features are in memory at a time.
    sequences = written_features(features)
    if annotations is not None:
        known = read_annotations(annotations, bad_segments="keep")
        names = read_class_names(classes) if classes else known.classes(subset)
        pooled = {one.video: pooled_features(one.features) for one in sequences}
        trained = SoftmaxClassifier.trained(pooled, known.subset(subset), names)
        scores = {video: trained.scores(row) for video, row in pooled.items()}
        how = f"softmax layer trained on {counted(trained.videos, 'video')} of {subset}"
    else:
        if classes is None:
            raise UserError("--run needs --classes, a file with one class name a line")
        from svilm_fast.train.ranks.process_group import choose_device
        from svilm_fast.train.run.clip_encoder import ClipEncoder
        from svilm_fast.train.run.loaded_run import load_run

        names = read_class_names(classes)
        assert run is not None
        loaded = load_run(run, device=choose_device(device, 0), weights=weights)
        encoder = ClipEncoder(loaded)
        _check_prompted(FeatureFolder(features).manifest(), encoder.identity(), features)
        texts = encoder.texts(prompts(names))
        scores = {one.video: prompt_scores(one.features, texts, len(names)) for one in sequences}
        how = "prompts"
    write_class_scores(out, names, scores)
    print(f"wrote {out}: {len(scores)} videos, {len(names)} classes, {how}")


def _check_prompted(manifest: dict[str, Any], identity: dict[str, Any], features: Path) -> None:
    """Raise UserError for features that prompts of the run cannot be compared with."""
    if manifest.get("settings", {}).get("features") == FeatureKind.POOLED:
        raise UserError(
            f"{features}: prompts are compared with embeddings, and these features are pooled "
            "tokens: extract others with --kind embedding, or train a layer with --annotations"
        )
    if manifest and manifest.get("encoder") != identity:
        raise UserError(
            f"{features}: the features are of other weights ({manifest.get('encoder')}) than those "
            f"of --run ({identity})"
        )


def check_output(out: Path, *inputs: Path) -> None:
    """Make the folder of a file that is written at the end, before any work is done.

    Raises UserError where the file is a folder, or one of the inputs.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder: give the path of a file")
    if any(out.resolve() == path.resolve() for path in inputs):
        raise UserError(f"{out} is also an input and would be overwritten: give another path")
    out.parent.mkdir(parents=True, exist_ok=True)


def extraction_settings(
    config: RunConfig,
    *,
    stride: int,
    clip: int,
    fps: float | None,
    batch: int,
    features: ClipFeatures = "embedding",
) -> ExtractionSettings:
    from svilm_fast.tasks.localization.extract import ExtractionSettings

    return ExtractionSettings(
        stride=stride,
        clip=clip,
        fps=fps,
        frames=config.video.frames,
        image_size=config.video.image_size,
        resize_margin=config.data.resize_margin,
        batch=batch,
        features=features,
    )


def long_limits(config: RunConfig) -> LimitsConfig:
    """Long videos may have more frames and take longer than clips."""
    limits = config.data.limits
    return limits.model_copy(
        update={
            "frames": max(limits.frames, LONG_FRAMES),
            "decode_s": max(limits.decode_s, LONG_SECONDS),
        }
    )
