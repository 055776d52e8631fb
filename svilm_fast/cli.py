"""The command line `svilm`: glues data, training, evaluation, report and benchmarks together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from svilm_fast.bench.cli import app as bench_app
from svilm_fast.bench.profile.command import app as profile_app
from svilm_fast.core.console import Console
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.checkpoint.commands import ckpt_app
from svilm_fast.train.config.commands import config_app
from svilm_fast.train.config.schema import Weights
from svilm_fast.train.doctor import doctor
from svilm_fast.train.plan.command import plan
from svilm_fast.train.pretrain import Overrides, pretrain
from svilm_fast.train.run.commands import evaluate_task
from svilm_fast.train.run_app import run_app
from svilm_fast.train.train import train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Structured video-language pre-training: render or pack data, train, evaluate, look.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make data: render the world, pack videos.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a finished run.")
evaluate_app.command("task")(evaluate_task)

app.command()(pretrain)
app.command()(train)
app.command()(plan)
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(config_app, name="config")
app.add_typer(ckpt_app, name="ckpt")
app.command()(doctor)
app.add_typer(bench_app, name="bench")
app.add_typer(profile_app, name="profile")

RunDir = Annotated[Path, typer.Option("--run", help="run directory that `svilm pretrain` wrote")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
WeightsKind = Annotated[
    Weights | None,
    typer.Option("--weights", help="as trained or their average; default: as ema.evaluate says"),
]
MaxClips = Annotated[int | None, typer.Option(min=1, help="use only the first clips")]

TABLE_WIDTH = 130
PICTURE_QUERIES = 4  # best and worst queries in the pictures


@data_app.command()
def world(
    out: Annotated[Path, typer.Option(help="folder for the shards of train, val and test")],
    train: Annotated[int | None, typer.Option(min=0, help="training clips")] = None,
    val: Annotated[int | None, typer.Option(min=0, help="validation clips")] = None,
    test: Annotated[int | None, typer.Option(min=0, help="test clips")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="draws every clip")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="side of the square frames, pixels")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="frames per clip")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per core")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace another world in the folder")] = False,
) -> None:
    """Render the embedded world: short MP4 files of moving shapes with captions and truth."""
    from svilm_fast.data.world import render_world
    from svilm_fast.data.world.config import build_config

    named: dict[str, Any] = {
        "train": train,
        "val": val,
        "test": test,
        "seed": seed,
        "size": size,
        "frames": frames,
    }
    config = build_config(**{name: value for name, value in named.items() if value is not None})
    shown = sys.stderr.isatty()
    print(render_world(out, config, workers=workers, overwrite=overwrite, progress=shown))


@data_app.command("pack")
def pack_videos(
    source: Annotated[str, typer.Argument(help="CSV or JSONL list, or a folder of videos")],
    out: Annotated[Path, typer.Option(help="new or empty folder for the shards")],
    videos: Annotated[
        str | None, typer.Option(help="folder of the listed videos; default: the list's own")
    ] = None,
    shard_samples: Annotated[int, typer.Option(min=1, help="clips per shard")] = 1000,
    threads: Annotated[int | None, typer.Option(min=1, help="decoders at work")] = None,
) -> None:
    """Check every video and pack what is good into shards; say what was refused and why."""
    from svilm_fast.data.pack import pack

    report = pack(source, out, videos=videos, shard_samples=shard_samples, threads=threads)
    print("\n".join(report.lines()))


@evaluate_app.callback()
def _evaluate() -> None:
    """Measure a finished run."""


@evaluate_app.command()
def retrieval(
    run: RunDir,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    list_file: Annotated[
        Path | None, typer.Option("--list", help="CSV or JSONL list to use as the test split")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="folder of the videos of --list")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="check the list against a named protocol: msrvtt-1ka")
    ] = None,
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
        typer.Option(min=0, max=1e6, help="how often R@1 must be that of colour sets alone"),
    ] = None,
    at_chance: Annotated[
        bool, typer.Option("--at-chance", help="R@10 must not differ from chance")
    ] = False,
) -> None:
    """Rank the captions and clips of a split against each other, both ways.

    Exit status 1 where a demanded figure is not reached.
    """
    from svilm_fast.evaluation import retrieval_table, write_retrieval
    from svilm_fast.evaluation.demands import Demands, judged
    from svilm_fast.evaluation.protocols import check_protocol, data_for_list
    from svilm_fast.report.page import retrieval_sections, write_pictures
    from svilm_fast.tasks.pretrain.retrieval import encoder_of, evaluate, evaluation_data
    from svilm_fast.tasks.pretrain.task import PICTURE_FRAMES
    from svilm_fast.train.folder.ownership import check_not_foreign, placed
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import check_result_name, result_name
    from svilm_fast.train.run.loaded_run import load_run

    if name is not None:
        check_result_name(name)
    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    config = loaded.config
    if list_file is not None:
        if split != "test":
            raise UserError("--list takes the place of the test split; leave out --split")
        config.data = data_for_list(config.data, list_file, videos or list_file.parent)
        name = name or result_name(f"list_{list_file.stem}")
    dataset = evaluation_data(config, split, loaded.tokenizer)
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
    )
    result.extra |= {"run": config.run.name, "step": loaded.step, "weights": loaded.weights.value}
    pictures = f"{name}_pictures"
    with placed(loaded.files, evaluation) as drafts:
        path = evaluation / write_retrieval(result, drafts, name=name).name
        write_pictures(retrieval_sections(result, PICTURE_QUERIES), drafts / pictures)
    # Piped output has no width of its own; the table needs this much to stay on one line a row.
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    console.print(retrieval_table(result))
    print(f"wrote {path} and {evaluation / pictures}")
    verdicts = judged(result, Demands(least, times_colours, at_chance))
    for met, text in verdicts:
        print(f"{'reached' if met else 'NOT reached'}: {text}")
    if not all(met for met, _ in verdicts):
        raise typer.Exit(1)


@app.command()
def report(
    run: RunDir,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    max_clips: MaxClips = None,
    clips: Annotated[int, typer.Option(min=1, help="clips to look into")] = 4,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Write report.html and its pictures: curves, retrieval, groups, temporal assignment."""
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.loaded_run import load_run
    from svilm_fast.train.run.reporting import write_report

    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    path = write_report(loaded, split, chosen, max_clips=max_clips, clips=clips)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    sys.exit(run_app(app, arguments))


if __name__ == "__main__":
    main()
