"""`svilm evaluate retrieval`: measure the retrieval of a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import Device, MaxClips, RunDir, Split, WeightsKind
from svilm_fast.core.console import Console
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides

TABLE_WIDTH = 130


def retrieval(
    run: RunDir,
    overrides: Overrides = None,
    split: Split = "test",
    list_file: Annotated[
        Path | None, typer.Option("--list", help="CSV or JSONL list to use as the test split")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="folder of the videos of --list")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="check the list against a protocol: msrvtt-1ka, didemo-p2v, lsmdc-1k, msvd-670, "
            "anet-val1 or vatex-1500"
        ),
    ] = None,
    set_level: Annotated[
        str | None,
        typer.Option(
            help="report apart scores normalised over queries: dsl (dual softmax, the test set), "
            "qbnorm (QB-Norm, a bank of training captions) or both, separated by a comma"
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(help="list or shards of training captions for qbnorm [default: data.train]"),
    ] = None,
    bank_videos: Annotated[
        Path | None,
        typer.Option(help="list or shards of training videos for qbnorm from video to text"),
    ] = None,
    rerank: Annotated[
        int,
        typer.Option(
            min=0,
            max=10_000,
            help="re-rank so many best videos of a caption by its nouns, reported apart",
        ),
    ] = 0,
    max_clips: MaxClips = None,
    weights: WeightsKind = None,
    device: Device = "auto",
    name: Annotated[
        str | None,
        typer.Option(
            help="name of the files in evaluation/ [default: retrieval, or list_ and the list's]"
        ),
    ] = None,
    least: Annotated[
        float | None,
        typer.Option(
            "--at-least", min=0, max=100, help="percent that text-to-video R@1 must reach"
        ),
    ] = None,
    times_colours: Annotated[
        float | None,
        typer.Option(
            min=0, max=1e6, help="multiple of the colour-set baseline that R@1 must reach"
        ),
    ] = None,
    at_chance: Annotated[
        bool, typer.Option("--at-chance", help="require R@10 to be at chance")
    ] = False,
) -> None:
    """Rank the captions and clips of a split against each other, both ways.

    The exit code is 1 if a required figure is not reached.
    """
    from svilm_fast.evaluation import retrieval_table
    from svilm_fast.evaluation.protocols import check_protocol
    from svilm_fast.evaluation.set_level import check_set_level
    from svilm_fast.evaluation.thresholds import check_thresholds
    from svilm_fast.report.page import write_pictures
    from svilm_fast.report.sections import retrieval_sections
    from svilm_fast.tasks.pretrain.retrieval import (
        RetrievalExtras,
        encoder_of,
        evaluate,
        evaluation_data,
        sharpness_of,
    )
    from svilm_fast.tasks.pretrain.task import PICTURE_FRAMES
    from svilm_fast.train.folder.ownership import check_not_foreign, placed
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import check_result_name, result_name
    from svilm_fast.train.run.loaded_run import load_run

    if name is not None:
        check_result_name(name)
    levels = check_set_level(set_level)
    banks = {"--bank": bank, "--bank-videos": bank_videos}
    given = {name: str(path) for name, path in banks.items() if path is not None}
    if given and "qbnorm" not in levels:
        raise UserError(f"{next(iter(given))} is for --set-level qbnorm, which was not asked for")
    extras = RetrievalExtras(
        protocol, levels, given.get("--bank"), given.get("--bank-videos"), rerank
    )
    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    config = loaded.config
    if list_file is not None:
        if split != "test":
            raise UserError("--list takes the place of the test split; leave out --split")
        listed = {"test": str(list_file), "videos": str(videos or list_file.parent)}
        config.data = config.data.model_copy(update=listed)
        name = name or result_name(f"list_{list_file.stem}")
    dataset = evaluation_data(config, split, loaded.tokenizer, nouns=rerank > 0)
    title = None if list_file is None else f"list {list_file.name}"
    if protocol is not None:
        title = check_protocol(protocol, dataset).title
    name = name or "retrieval"
    evaluation = loaded.files.evaluation
    check_not_foreign(loaded.files, [evaluation / f"{name}.json", evaluation / f"{name}.txt"])
    result = evaluate(
        encoder_of(loaded.model),
        dataset,
        config,
        chosen,
        protocol=title,
        max_clips=max_clips,
        keep_frames=PICTURE_FRAMES,
        extras=extras,
        sharpness=sharpness_of(loaded.model, config),
    )
    result.extra |= {"run": config.run.name, "step": loaded.step, "weights": loaded.weights.value}
    pictures = f"{name}_pictures"
    with placed(loaded.files, evaluation) as drafts:
        result.write(drafts, name)
        write_pictures(retrieval_sections(result), drafts / pictures)
    # Piped output has no width; this one fits every row of the table on one line.
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    console.print(retrieval_table(result))
    print(f"wrote {evaluation / name}.json and {evaluation / pictures}")
    checks = check_thresholds(result, least=least, times_colours=times_colours, at_chance=at_chance)
    for met, text in checks:
        print(f"{'reached' if met else 'NOT reached'}: {text}")
    if not all(met for met, _ in checks):
        raise typer.Exit(1)
