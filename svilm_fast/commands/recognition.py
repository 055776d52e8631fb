"""Options and data that the commands of action recognition share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svilm_fast.core.errors import UserError

if TYPE_CHECKING:
    from svilm_fast.data.config import DataConfig
    from svilm_fast.data.dataset import ClipDataset
    from svilm_fast.data.views import Views
    from svilm_fast.tasks.action.result import RecognitionResult
    from svilm_fast.train.run.loaded_run import LoadedRun

LabelField = Annotated[
    str | None,
    typer.Option(
        help="field of a sample's JSON with its class [default: task.label_field, or label]"
    ),
]
ClipCount = Annotated[int, typer.Option(min=1, max=1000, help="clips of a video")]
CropCount = Annotated[int, typer.Option(min=1, max=3, help="crops of a clip: 1 or 3")]


class Spread(StrEnum):
    INTERLEAVED = "interleaved"
    CONSECUTIVE = "consecutive"


def field_of(loaded: LoadedRun, given: str | None) -> str:
    """Return the field with the class of a sample: given, or that of the run, or `label`."""
    return given or str(getattr(loaded.config.task, "label_field", "label"))


def views_of(clips: int, crops: int, spread: str) -> Views:
    """Return the views of a video. Raises UserError for a wrong number of crops."""
    from svilm_fast.data.views import CROPS, Views

    if crops not in CROPS:
        raise UserError(f"--crops {crops}: give 1 or 3")
    return Views(clips=clips, crops=crops, spread=spread)  # type: ignore[arg-type]


def data_of(loaded: LoadedRun, lists: dict[str, Path | None], videos: Path | None) -> DataConfig:
    """Return the data settings with lists in the place of splits; captions are not read.

    lists: of a split, None: that of the run. videos: their folder; None: that of the first list.
    """
    given = {split: str(path) for split, path in lists.items() if path is not None}
    if given:
        given["videos"] = str(videos or Path(next(iter(given.values()))).parent)
    elif videos is not None:
        raise UserError("--videos is the folder of a list's videos: give the list too")
    return loaded.config.data.model_copy(update={**given, "captions": "none"})


def lists_by_name(
    lists: Sequence[Path] | None, name: str | None, split: str
) -> dict[str, Path | None]:
    """Return the test lists by the beginning of their results' names; None: the run's own split.

    name: given; several lists are numbered then. Raises UserError for a list that repeats.
    """
    from svilm_fast.train.run.evaluate import result_name

    if not lists:
        return {name or split: None}
    if len(set(lists)) < len(lists):
        raise UserError("the same list is given twice: give every split once")
    if name is not None and len(lists) == 1:
        return {name: lists[0]}
    names = [name or result_name(f"list_{path.stem}") for path in lists]
    return {
        each if names.count(each) == 1 else f"{each}_{place}": path
        for place, (each, path) in enumerate(zip(names, lists, strict=True), 1)
    }


def clips_of(
    loaded: LoadedRun, split: str, max_clips: int | None, views: Any, *, train: bool = False
) -> ClipDataset:
    """Open the clips of a split without captions, in evaluation or in training view."""
    from svilm_fast.tasks.clips import check_split, evaluation_clips, training_clips

    config = loaded.config
    evaluation = config.evaluation.model_copy(update={"captions": None})
    config = config.model_copy(update={"evaluation": evaluation})
    if train:
        check_split(config, split)
        return training_clips(config, split, loaded.tokenizer, nouns=False)
    return evaluation_clips(
        config, split, loaded.tokenizer, nouns=False, max_clips=max_clips, views=views
    )


def write_mean(loaded: LoadedRun, results: Mapping[str, RecognitionResult], base: str) -> list[str]:
    """Write the mean over splits into the run; return the lines to print."""
    from svilm_fast.tasks.action.splits import SplitMean
    from svilm_fast.train.folder.ownership import check_not_foreign, placed
    from svilm_fast.train.run.evaluate import files_of

    mean, folder = SplitMean(results), loaded.files.evaluation
    name = f"{base}_{mean.prefix}_mean"
    check_not_foreign(loaded.files, files_of(folder, name))
    with placed(loaded.files, folder) as drafts:
        mean.write(drafts, name)
    return ["", *mean.lines(), f"wrote {folder / name}.json"]


def write_result(loaded: LoadedRun, result: RecognitionResult, name: str) -> list[str]:
    """Write the files and pictures of a result into the run; return the lines to print."""
    from svilm_fast.report.page import write_pictures
    from svilm_fast.tasks.action.page import recognition_sections
    from svilm_fast.train.folder.ownership import check_not_foreign, placed
    from svilm_fast.train.run.evaluate import files_of

    folder = loaded.files.evaluation
    check_not_foreign(loaded.files, files_of(folder, name))
    result.protocol |= {
        "run": loaded.config.run.name,
        "step": loaded.step,
        "weights": loaded.weights.value,
    }
    pictures = f"{name}_pictures"
    with placed(loaded.files, folder) as drafts:
        result.write(drafts, name)
        write_pictures(recognition_sections(result), drafts / pictures)
    lines = [*result.summary(), "", *result.lines()]
    lines += [f"not decoded: {video}: {why}" for video, why in result.missing.items()]
    return [*lines, f"wrote {folder / name}.json and {folder / pictures}"]
