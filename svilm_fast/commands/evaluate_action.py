"""`svilm evaluate action`: recognition by prompts, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import Device, MaxClips, RunDir, Split, WeightsKind
from svilm_fast.commands.recognition import ClipCount, CropCount, LabelField, Spread
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides


def action(
    run: RunDir,
    overrides: Overrides = None,
    split: Split = "test",
    list_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--list",
            help="CSV or JSONL list to use as the test split; repeat it for the mean over splits",
        ),
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="folder of the videos of --list")] = None,
    label_field: LabelField = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="text file with one class a line [default: the labels of the split]"),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="prompts with {}, one a line or a JSON list [default: a packaged list]"),
    ] = None,
    clips: ClipCount = 1,
    crops: CropCount = 1,
    spread: Spread = Spread.INTERLEAVED,
    max_clips: MaxClips = None,
    weights: WeightsKind = None,
    device: Device = "auto",
    name: Annotated[
        str | None,
        typer.Option(help="name of the files in evaluation/ [default: SPLIT_zero_shot_action]"),
    ] = None,
) -> None:
    """Recognise actions without training, by prompts with the names of the classes.

    A video belongs to the class whose prompts are nearest to it.
    """
    from svilm_fast.commands.recognition import (
        clips_of,
        data_of,
        field_of,
        lists_by_name,
        views_of,
        write_mean,
        write_result,
    )
    from svilm_fast.tasks.action.classes import ClassNames
    from svilm_fast.tasks.action.zero_shot import Templates, recognise
    from svilm_fast.tasks.pretrain.retrieval import encoder_of
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import check_result_name
    from svilm_fast.train.run.loaded_run import load_run

    if name is not None:
        check_result_name(name)
    prompts = Templates.packaged() if templates is None else Templates.read(templates)
    names = None if classes is None else ClassNames.read(classes)
    views = views_of(clips, crops, spread.value)
    if list_file and split != "test":
        raise UserError("--list takes the place of the test split; leave out --split")
    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    field = field_of(loaded, label_field)
    results = {}
    for base, listed in lists_by_name(list_file, name, split).items():
        loaded.config.data = data_of(loaded, {"test": listed}, videos)
        results[base] = recognise(
            encoder_of(loaded.model),
            loaded.config,
            clips_of(loaded, split, max_clips, views),
            names,
            prompts,
            chosen,
            field=field,
            max_clips=max_clips,
        )
        own = base if name is not None else f"{base}_zero_shot_action"
        print("\n".join(write_result(loaded, results[base], own)))
    if len(results) > 1:
        print("\n".join(write_mean(loaded, results, name or "lists")))
