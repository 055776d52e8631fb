"""The command line `svilm`: names every command and the module that runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

import svilm_fast
from svilm_fast.bench.cli import app as bench_app
from svilm_fast.core.lazy_commands import add_command, examples_text
from svilm_fast.core.terminal import print
from svilm_fast.train.run_app import run_app


def _group(summary: str, *examples: str) -> typer.Typer:
    return typer.Typer(no_args_is_help=True, help=summary, epilog=examples_text(examples))


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Structured video-language pre-training: make data, train, evaluate, report, benchmark.",
    epilog=examples_text(
        (
            "svilm data world --out runs/demo-world",
            "svilm pretrain --config demo run.dir=runs/first",
            "svilm report --run runs/first",
        )
    ),
)


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    print(f"svilm-fast {svilm_fast.__version__}")
    for package in ("torch", "triton"):
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package} not installed")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the versions of svilm-fast, PyTorch and Triton, and exit.",
        ),
    ] = False,
) -> None:
    del version  # its callback has printed and ended the program


add_command(
    app,
    "pretrain",
    "svilm_fast.train.pretrain:pretrain",
    "Train a model; under `deepspeed` or `torchrun` as one rank of many, else alone.",
    "svilm pretrain --config demo run.dir=runs/first training.steps=100",
    "svilm pretrain --config runs/first/config.yaml --resume",
    "svilm pretrain --config svilm_base training.global_batch=2048 --dry-run",
)
add_command(
    app,
    "train",
    "svilm_fast.train.train:train",
    "Train a model for a task; under `deepspeed` or `torchrun` as one rank of many, else alone.",
    "svilm train --task pretrain --config demo run.dir=runs/first",
    "svilm train --config runs/first/config.yaml --resume",
)
add_command(
    app,
    "plan",
    "svilm_fast.train.plan.command:plan",
    "Print parameters, FLOPs, memory by ZeRO stage, and the settings that fit, with reasons.",
    "svilm plan --config svilm_base --gpus 64 --gpu h100",
    "svilm plan --gpus 8 --memory 40GiB training.global_batch=4096",
)

data_app = _group(
    "Make data: render the world, pack videos.",
    "svilm data world --out runs/world",
    "svilm data pack videos.csv --out shards/train",
)
add_command(
    data_app,
    "world",
    "svilm_fast.data.commands:world",
    "Render the embedded world: short MP4 files of moving shapes with captions and truth.",
    "svilm data world --out runs/world",
    "svilm data world --out runs/small --train 32 --val 8 --test 8 --size 32 --frames 8",
)
add_command(
    data_app,
    "pack",
    "svilm_fast.data.commands:pack_videos",
    "Check every video, pack the valid ones into shards, and list the refused with reasons.",
    "svilm data pack videos.csv --out shards/train",
    "svilm data pack list.jsonl --videos /data/clips --out shards/train --shard-samples 500",
    "svilm data pack list.jsonl --out shards/train --precut --clip-seconds 10 --short-side 256",
)
app.add_typer(data_app, name="data")

evaluate_app = _group(
    "Evaluate a finished run.",
    "svilm evaluate retrieval --run runs/demo",
)
add_command(
    evaluate_app,
    "retrieval",
    "svilm_fast.commands.evaluate:retrieval",
    "Rank the captions and clips of a split against each other, both ways.",
    "svilm evaluate retrieval --run runs/demo",
    "svilm evaluate retrieval --run runs/demo --split val --weights ema",
    "svilm evaluate retrieval --run runs/demo --list msrvtt.csv --videos clips "
    "--protocol msrvtt-1ka",
)
add_command(
    evaluate_app,
    "task",
    "svilm_fast.commands.evaluate_task:evaluate_task",
    "Measure a run with the evaluators of its task; print and write every figure.",
    "svilm evaluate task --run runs/demo --split val",
)
app.add_typer(evaluate_app, name="evaluate")

add_command(
    app,
    "embed",
    "svilm_fast.commands.embed:embed",
    "Embed the videos and captions of shards with a finished run.",
    "svilm embed shards/test --run runs/demo --out embeddings/test",
)

config_app = _group(
    "Show settings and recipes.",
    "svilm config list",
    "svilm config explain optimizer.lr",
)
add_command(
    config_app,
    "print",
    "svilm_fast.train.config.commands:print_config",
    "Print a recipe with all its bases and overrides resolved.",
    "svilm config print --config svilm_base training.global_batch=2048",
)
add_command(
    config_app,
    "explain",
    "svilm_fast.train.config.commands:explain_key",
    "Print type, default and meaning of settings.",
    "svilm config explain",
    "svilm config explain optimizer.lr",
)
add_command(
    config_app,
    "list",
    "svilm_fast.train.config.commands:list_recipes",
    "Print the packaged recipes and the first sentence of each.",
    "svilm config list",
)
app.add_typer(config_app, name="config")

ckpt_app = _group(
    "Inspect and convert checkpoints.",
    "svilm ckpt info runs/demo",
    "svilm ckpt convert --run runs/demo",
)
add_command(
    ckpt_app,
    "convert",
    "svilm_fast.train.checkpoint.commands:convert",
    "Make a portable checkpoint of a run's DeepSpeed checkpoint, of any ZeRO stage and rank count.",
    "svilm ckpt convert --run runs/demo",
    "svilm ckpt convert --run runs/demo --step 480 --out runs/demo-at-480",
)
add_command(
    ckpt_app,
    "info",
    "svilm_fast.train.checkpoint.commands:info",
    "Print step, rank count, ZeRO stage and sizes, and verify every checksum.",
    "svilm ckpt info runs/demo",
)
app.add_typer(ckpt_app, name="ckpt")

add_command(
    app,
    "report",
    "svilm_fast.commands.report:report",
    "Write report.html and its pictures: curves, retrieval, groups, temporal assignment.",
    "svilm report --run runs/demo",
    "svilm report --run runs/demo --split val --clips 8",
)
add_command(
    app,
    "doctor",
    "svilm_fast.train.doctor:doctor",
    "Check versions, kernels against their oracles, attention, disk and process group.",
    "svilm doctor",
)
app.add_typer(bench_app, name="bench")

profile_app = _group(
    "Profile an op, a training step or an existing trace.",
    "svilm profile op infonce",
    "svilm profile trace runs/profile/step.json.gz",
)
add_command(
    profile_app,
    "op",
    "svilm_fast.bench.profile.command:op",
    "Record a registered benchmark: trace, operators, kernels, gaps, memory over time.",
    "svilm profile op infonce --direction both --dtype float32",
)
add_command(
    profile_app,
    "step",
    "svilm_fast.bench.profile.command:step",
    "Record training steps of a recipe, also on many ranks under a launcher (rank 0 prints).",
    "svilm profile step --config demo --synthetic",
)
add_command(
    profile_app,
    "trace",
    "svilm_fast.bench.profile.command:trace",
    "Tables and picture of a trace, for example of training.profile.steps.",
    "svilm profile trace runs/profile/step.json.gz",
)
app.add_typer(profile_app, name="profile")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    sys.exit(run_app(app, arguments))


if __name__ == "__main__":
    main()
