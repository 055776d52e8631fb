"""`svilm localize predict`, `evaluate` and `video`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svilm_fast.commands.localize import Subset, check_output, extraction_settings, long_limits
from svilm_fast.commands.options import Device, MaxClips, RunDir, Split, WeightsKind
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides

if TYPE_CHECKING:
    from svilm_fast.tasks.localization.extract import ExtractionSettings
    from svilm_fast.train.run.loaded_run import LoadedRun


class DuplicateRule(StrEnum):
    """Which annotations are the same one."""

    NONE = "none"
    ACTIONFORMER = "actionformer"


class SegmentRule(StrEnum):
    """What happens to annotated segments that are empty, negative or beyond the video."""

    ERROR = "error"
    KEEP = "keep"
    DROP = "drop"


class LabelRule(StrEnum):
    """What happens to predictions with a label that no annotation has."""

    ERROR = "error"
    IGNORE = "ignore"


class ThresholdSet(StrEnum):
    """IoU thresholds of a benchmark."""

    ACTIVITYNET = "activitynet"
    THUMOS = "thumos"


def predict(
    run: RunDir,
    out: Annotated[Path, typer.Option(help="file for the predictions, ActivityNet JSON")],
    overrides: Overrides = None,
    split: Split = "test",
    max_clips: MaxClips = None,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Predict the segments of a split with a finished run, as ActivityNet JSON."""
    from svilm_fast.data.formats.activitynet import write_predictions
    from svilm_fast.tasks.base import EvaluationRequest
    from svilm_fast.train.ranks.process_group import choose_device

    check_output(out)
    chosen = choose_device(device, 0)
    loaded = _localization_run(run, chosen, weights, overrides)
    (evaluator,) = loaded.task.evaluators(loaded.tokenizer, split, max_clips)
    predictions = evaluator.predictions(loaded.model, EvaluationRequest(chosen))  # type: ignore[attr-defined]
    write_predictions(out, predictions)
    count = sum(map(len, predictions.values()))
    print(f"wrote {out}: {count} segments in {len(predictions)} videos")


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="predictions, ActivityNet JSON")],
    annotations: Annotated[Path, typer.Option(help="annotations, ActivityNet JSON")],
    subset: Subset = "validation",
    thresholds: Annotated[
        ThresholdSet, typer.Option(help="IoU 0.5:0.05:0.95, or 0.3:0.1:0.7")
    ] = ThresholdSet.ACTIVITYNET,
    dedupe: Annotated[DuplicateRule, typer.Option(help="rule for duplicate annotations")] = (
        DuplicateRule.NONE
    ),
    blocked: Annotated[Path | None, typer.Option(help="list of videos to leave out")] = None,
    unknown_labels: Annotated[LabelRule, typer.Option(help="predictions of no class")] = (
        LabelRule.ERROR
    ),
    bad_segments: Annotated[SegmentRule, typer.Option(help="annotated segments that are wrong")] = (
        SegmentRule.ERROR
    ),
    classifier: Annotated[
        str, typer.Option(help="name of the classifier behind the labels, for the protocol")
    ] = "not stated",
    out: Annotated[Path | None, typer.Option(help="file for the result, .json")] = None,
) -> None:
    """Compute mAP of predictions in ActivityNet JSON, and print it with its protocol."""
    from svilm_fast.core.console import Console
    from svilm_fast.data.formats import activitynet
    from svilm_fast.evaluation import localization

    if out is not None:
        if out.suffix != ".json":
            raise UserError(f"--out {out}: give a file that ends with .json")
        check_output(out, predictions, annotations)
    known = activitynet.read_annotations(annotations, bad_segments=bad_segments.value)
    videos = known.subset(subset)
    named: dict[str, list[activitynet.PredictedSegment]] = {}
    for name, segments in activitynet.read_predictions(predictions).items():
        named.setdefault(activitynet.known_video(name, videos) or name, []).extend(segments)
    left_out = activitynet.read_blocked(blocked, videos) if blocked else frozenset[str]()
    result = localization.localization_map(
        {name: video.segments for name, video in videos.items()},
        named,
        thresholds=(
            localization.THUMOS_THRESHOLDS
            if thresholds is ThresholdSet.THUMOS
            else localization.ACTIVITYNET_THRESHOLDS
        ),
        dedupe=dedupe.value,
        blocked=left_out,
        unknown_labels=unknown_labels.value,
        durations={name: video.duration for name, video in videos.items()},
        protocol={
            "annotations_file": annotations.name,
            "annotations_sha256": known.sha256[:16],
            "subset": subset,
            "bad_segments": bad_segments.value,
            **known.notes,
            "predictions_file": predictions.name,
            "predictions_sha256": activitynet.file_sha256(predictions)[:16],
            "classifier": classifier,
            "blocked_list": blocked.name if blocked else None,
            "blocked_sha256": activitynet.file_sha256(blocked)[:16] if blocked else None,
        },
    )
    Console().print(result.table())
    if out is not None:
        result.write(out.parent, out.stem)
        print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.txt')}")


def video(
    path: Annotated[Path, typer.Argument(help="video file")],
    run: RunDir,
    encoder: Annotated[Path, typer.Option(help="run that made the features of the training")],
    classes: Annotated[
        Path | None, typer.Option(help="class names, one a line; default: the head's own")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="timeline [default: NAME-timeline.png]")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="as in the training's features")] = None,
    clip: Annotated[int | None, typer.Option(min=1, help="as in the training's features")] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.01, max=1000, help="as in the training's features")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="segments that are printed and drawn")] = 10,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Find the actions of one video file; print them and draw a timeline.

    A head for proposals takes its labels from --classes: prompts with these names are compared with
    the whole video. A head with classes of its own shows those of them that --classes names.
    """
    from rich.table import Table

    from svilm_fast.core.console import Console
    from svilm_fast.data.errors import DataError
    from svilm_fast.report.localization import VideoTimeline, draw_timelines, shown_predictions
    from svilm_fast.report.page import picture
    from svilm_fast.tasks.localization.classify import read_class_names
    from svilm_fast.tasks.localization.extract import extract_sequence
    from svilm_fast.tasks.localization.raw_video import localized
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.clip_encoder import ClipEncoder
    from svilm_fast.train.run.loaded_run import load_run

    names = read_class_names(classes) if classes else None
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    target = out or Path(f"{path.stem}-timeline.png")
    check_output(target, path)
    chosen = choose_device(device, 0)
    loaded = _localization_run(run, chosen, weights, None)
    encoders = load_run(encoder, device=chosen)
    trained_on = loaded.task.features.get("settings", {})  # type: ignore[attr-defined]
    clip_encoder = ClipEncoder(encoders, trained_on.get("features", "embedding"))
    if names and clip_encoder.features == "pooled" and loaded.config.task.labels == "external":  # type: ignore[attr-defined]
        raise UserError(
            f"{run} was trained on pooled tokens, which prompts cannot be compared with: leave out "
            "--classes, or train on features of `svilm localize extract --kind embedding`"
        )
    given = {"stride": stride, "clip": clip, "fps": fps}
    settings = _trained_extraction(loaded, encoders.config, clip_encoder.identity(), given)
    limits = long_limits(encoders.config)
    try:
        sequence = extract_sequence(path.stem, path, clip_encoder, settings, limits)
    except DataError as error:
        raise UserError(f"{path}: {error}") from error
    found = localized(loaded.task, loaded.model, sequence, names, clip_encoder.texts, chosen)
    best = shown_predictions(found, top)
    length = sequence.duration or max((one.end for one in best), default=1.0)
    table = Table(title=f"{path.name}, {length:.1f} s, {len(sequence.features)} vectors")
    for name in ("start, s", "end, s", "score"):
        table.add_column(name, justify="right")
    table.add_column("action")
    for one in best:
        table.add_row(f"{one.start:.2f}", f"{one.end:.2f}", f"{one.score:.3f}", one.label)
    Console().print(table if best else f"{path.name}, {length:.1f} s: no action was found")
    rows = [VideoTimeline(path.name, length, None, found)]
    drawn = picture("timeline", lambda theme: draw_timelines(rows, theme, top), path.name)
    target.write_bytes(drawn.light)
    print(f"wrote {target}")


def _localization_run(
    run: Path, device: Any, weights: Any, overrides: list[str] | None
) -> LoadedRun:
    from svilm_fast.tasks.localization.task import Localization
    from svilm_fast.train.run.loaded_run import load_run

    loaded = load_run(run, device=device, overrides=overrides, weights=weights)
    if not isinstance(loaded.task, Localization):
        raise UserError(
            f"{run} is a run of task {loaded.config.task.name!r}: give one of "
            "`svilm train --task localization`"
        )
    return loaded


def _trained_extraction(
    loaded: LoadedRun, encoder: Any, identity: dict[str, Any], given: dict[str, Any]
) -> ExtractionSettings:
    """The extraction of the training's features; options replace what is not known of them."""
    manifest: dict[str, Any] = loaded.task.features  # type: ignore[attr-defined]
    known = manifest.get("settings", {})
    values = {name: known.get(name) if value is None else value for name, value in given.items()}
    if values["stride"] is None or values["clip"] is None:
        raise UserError(
            f"{loaded.files.root} does not say how its features were extracted (they were no files "
            "of `svilm localize extract`): give --stride, --clip and --fps"
        )
    if manifest and manifest.get("encoder") != identity:
        raise UserError(
            f"{loaded.files.root} was trained on features of other weights "
            f"({manifest.get('encoder')}) than those of --encoder ({identity})"
        )
    features = known.get("features", "embedding")
    return extraction_settings(encoder, batch=16, features=features, **values)
