"""The command line `svilm`: registers every command with the module that runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import svilm_fast
from svilm_fast.bench.cli import app as bench_app
from svilm_fast.core.lazy_commands import add_command, examples_text
from svilm_fast.core.machine import package_version
from svilm_fast.core.terminal import print
from svilm_fast.train.run_app import run_app

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


def _group(name: str, summary: str, *examples: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help=summary, epilog=examples_text(examples))
    app.add_typer(group, name=name)
    return group


def _print_versions(requested: bool) -> None:
    if not requested:
        return
    print(f"svilm-fast {svilm_fast.__version__}")
    for package in ("torch", "triton"):
        print(package, package_version(package) or "not installed")
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
    del version  # _print_versions has handled it


add_command(
    app,
    "pretrain",
    "svilm_fast.train.pretrain:pretrain",
    "Train a model, in one process or as one rank under `deepspeed` or `torchrun`.",
    "svilm pretrain --config demo run.dir=runs/first training.steps=100",
    "svilm pretrain --config runs/first/config.yaml --resume",
    "svilm pretrain --config svilm_base training.global_batch=2048 --dry-run",
)
add_command(
    app,
    "train",
    "svilm_fast.train.train:train",
    "Train a model, in one process or as one rank under `deepspeed` or `torchrun`.",
    "svilm train --task pretrain --config demo run.dir=runs/first",
    "svilm train --config runs/first/config.yaml --resume",
)
add_command(
    app,
    "finetune",
    "svilm_fast.train.finetune:finetune",
    "Train a task on the weights of a pre-training run, on one rank or many.",
    "svilm finetune qa --weights-from runs/demo run.dir=runs/qa",
    "svilm finetune qa --from-scratch run.dir=runs/qa-scratch",
    "svilm finetune qa --resume run.dir=runs/qa",
)
add_command(
    app,
    "plan",
    "svilm_fast.train.plan.command:plan",
    "Print parameters, FLOPs, memory by ZeRO stage, and the settings that fit, with reasons.",
    "svilm plan --config svilm_base --gpus 64 --gpu h100",
    "svilm plan --gpus 8 --memory 40GiB training.global_batch=4096",
)

add_command(
    app,
    "ablate",
    "svilm_fast.train.campaigns.command:ablate",
    "Run a table of recipes over seeds, resume it where it stopped, and write its figures.",
    "svilm ablate downstream --jobs 2",
    "svilm ablate objectives --gpus 0,1,2,3 --seeds 0,1,2,3,4,5,6,7",
)
add_command(
    app,
    "results",
    "svilm_fast.train.campaigns.command:results",
    "Write the page of results, with its pictures, from the JSON of tables.",
    "svilm results docs/results/downstream.json --out docs/results.md",
)
data_app = _group(
    "data",
    "Make data: render the world, pack videos, index and inspect data sets; measure loading.",
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
    "svilm data world --out runs/single 'object_counts=[1]' sequences=0",
)
add_command(
    data_app,
    "world-untrimmed",
    "svilm_fast.data.commands:world_untrimmed",
    "Render untrimmed videos of the world, 20 to 40 s, with ActivityNet JSON of their actions.",
    "svilm data world-untrimmed --out runs/untrimmed",
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
add_command(
    data_app,
    "convert",
    "svilm_fast.data.formats.convert:convert",
    "Convert annotation files of a public data set to a JSONL list; print counts and its hash.",
    "svilm data convert msrvtt MSRVTT_JSFUSION_test.csv --out msrvtt-1ka.jsonl --videos clips",
    "svilm data convert msrvtt MSRVTT_train.9k.csv MSRVTT_data.json --out msrvtt-9k.jsonl",
    "svilm data convert msrvtt",
    "svilm data convert internvid flt.jsonl --out list.jsonl --group --option where='umt_score>.4'",
)
add_command(
    data_app,
    "filter",
    "svilm_fast.commands.filter_clips:filter_clips",
    "Keep the clips whose video and caption are most similar under a model; print a histogram.",
    "svilm data filter shards/train --run runs/first --out filtered --keep-share 0.3",
    "svilm data filter list.jsonl --embeddings embeddings/train --out filtered --threshold 0.25",
)
add_command(
    data_app,
    "index",
    "svilm_fast.data.commands:index_sources",
    "Index shards or lists once, beside them, so that every run opens them at once.",
    "svilm data index shards/train",
    "svilm data index list.jsonl --videos /data/clips",
)
add_command(
    data_app,
    "compress",
    "svilm_fast.data.compress.command:compress",
    "Compress clips to palettes and codes in shards, or report what it would give.",
    "svilm data compress shards/train --out shards/train-64 --bits 6",
    "svilm data compress shards/train --out shards/blocks --vectors blocks --frames 16",
    "svilm data compress shards/train --report runs/compression",
)
add_command(
    data_app,
    "inspect",
    "svilm_fast.data.commands:inspect",
    "Print what a data set holds: samples, captions, nouns, videos, decoding time.",
    "svilm data inspect shards/train --sheet sheet.png",
    "svilm data inspect list.jsonl --videos /data/clips --clips 24",
)
add_command(
    data_app,
    "check-decoding",
    "svilm_fast.data.commands:check_decoding",
    "Compare decoding by groups of pictures with decoding everything; exit 1 on a difference.",
    "svilm data check-decoding clips",
    "svilm data check-decoding shards/train --draws 10",
)
add_command(
    data_app,
    "bench",
    "svilm_fast.bench.loading.command:bench",
    "Load clips, by stage and against a plain loop (and torchcodec where installed), in turn.",
    "svilm data bench",
    "svilm data bench --seconds 10,60 --videos clips --out loading.json",
)

evaluate_app = _group(
    "evaluate",
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
    "action",
    "svilm_fast.commands.evaluate_action:action",
    "Recognise actions without training, by prompts with the names of the classes.",
    "svilm evaluate action --run runs/demo --label-field action",
    "svilm evaluate action --run runs/demo --list ucf101-test1.jsonl --videos clips",
)
add_command(
    evaluate_app,
    "task",
    "svilm_fast.commands.evaluate_task:evaluate_task",
    "Measure a run with the evaluators of its task; print and write figures and protocol.",
    "svilm evaluate task --run runs/demo --split val",
)
add_command(
    evaluate_app,
    "structure",
    "svilm_fast.commands.evaluate_structure:structure",
    "Measure pointing of nouns, boundaries of pasted parts and similarity of segments.",
    "svilm evaluate structure --run runs/demo",
)

probe_app = _group(
    "probe",
    "Fit classifiers on the frozen features of a finished run.",
    "svilm probe action --run runs/demo --label-field action",
)
add_command(
    probe_app,
    "action",
    "svilm_fast.commands.probe:action",
    "Fit linear and attentive probes on the frozen video tower, by published protocols.",
    "svilm probe action --run runs/demo --label-field action",
    "svilm probe action --run runs/demo --protocol mmv --train-list ucf101-train1.jsonl "
    "--test-list ucf101-test1.jsonl --videos clips --features features",
)

add_command(
    app,
    "embed",
    "svilm_fast.commands.embed:embed",
    "Embed the videos and captions of shards or of a list with a finished run.",
    "svilm embed shards/test --run runs/demo --out embeddings/test",
)

localize_app = _group(
    "localize",
    "Find actions in untrimmed videos: features, classes, predictions, evaluation.",
    "svilm localize extract videos --run runs/demo --out features",
    "svilm localize video clip.mp4 --run runs/localization --encoder runs/demo --classes names.txt",
)
add_command(
    localize_app,
    "extract",
    "svilm_fast.commands.localize:extract",
    "Compute features of long videos at a stride, with a finished run's video encoder.",
    "svilm localize extract runs/untrimmed/videos --run runs/demo --out runs/untrimmed-features "
    "--fps 8 --clip 8 --stride 4",
)
add_command(
    localize_app,
    "classify",
    "svilm_fast.commands.localize:classify",
    "Score the classes of whole videos from their features, in CUHK's format.",
    "svilm localize classify --features features --classes names.txt --run runs/demo "
    "--out scores.json",
    "svilm localize classify --features features --annotations gt.json --out scores.json",
)
add_command(
    localize_app,
    "predict",
    "svilm_fast.commands.localize_predict:predict",
    "Predict the segments of a split with a finished run, as ActivityNet JSON.",
    "svilm localize predict --run runs/localization --split val --out predictions.json",
)
add_command(
    localize_app,
    "evaluate",
    "svilm_fast.commands.localize_predict:evaluate",
    "Compute mAP of predictions in ActivityNet JSON, and print it with its protocol.",
    "svilm localize evaluate predictions.json --annotations gt.json --subset validation",
)
add_command(
    localize_app,
    "video",
    "svilm_fast.commands.localize_predict:video",
    "Find the actions of one video file; print them and draw a timeline.",
    "svilm localize video clip.mp4 --run runs/localization --encoder runs/demo --classes names.txt",
)
add_command(
    app,
    "export",
    "svilm_fast.commands.export:export",
    "Export a run's model as a folder: weights, settings, tokenizer and model card.",
    "svilm export --run runs/demo --out models/demo",
    "svilm export --run runs/demo --out models/demo --weights ema --license apache-2.0",
)

add_command(
    app,
    "search",
    "svilm_fast.commands.search:search",
    "Find moments in a folder of videos by words, with the region each noun attends to.",
    'svilm search "a dog in the snow" --videos clips --model models/demo',
    'svilm search "a red circle" --videos clips --model runs/demo --html found.html '
    "--overlay found.mp4",
)

config_app = _group(
    "config",
    "Show settings and recipes.",
    "svilm config list",
    "svilm config explain optimizer.lr",
)
add_command(
    config_app,
    "print",
    "svilm_fast.train.config.commands:print_config",
    "Print a recipe with its bases and overrides resolved.",
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

ckpt_app = _group(
    "ckpt",
    "Inspect and convert checkpoints.",
    "svilm ckpt info runs/demo",
    "svilm ckpt convert --run runs/demo",
)
add_command(
    ckpt_app,
    "convert",
    "svilm_fast.train.checkpoint.commands:convert",
    "Convert a run's DeepSpeed checkpoint, of any ZeRO stage and rank count, to a portable one.",
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
add_command(
    ckpt_app,
    "interpolate",
    "svilm_fast.train.checkpoint.interpolate:interpolate",
    "Write checkpoints with weights between those of two, (1 - alpha) * A + alpha * B.",
    "svilm ckpt interpolate runs/demo runs/tuned --out runs/between",
    "svilm ckpt interpolate A B --alpha 0.25 --alpha 0.5 --alpha 0.75 --out runs/wise",
)
add_command(
    ckpt_app,
    "grow",
    "svilm_fast.train.checkpoint.grow:grow",
    "Grow a trained video tower in width and depth; the outputs stay equal to 1e-5.",
    "svilm ckpt grow runs/small --width 768 --depth 12 --out runs/grown",
    "svilm ckpt grow runs/vidrop-demo --width 256 --out runs/grown",
)

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
    "drop-patterns",
    "svilm_fast.commands.drop_patterns:drop_patterns",
    "Draw which tokens every drop pattern keeps of a clip of the rendered world.",
    "svilm drop-patterns --out docs/figures/drop_patterns.png",
    "svilm drop-patterns --rate 0.5 --frames 16 --tubelet 2",
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
    "profile",
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
    "Print tables and draw the memory picture of an existing trace.",
    "svilm profile trace runs/profile/step.json.gz",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    sys.exit(run_app(app, arguments))


if __name__ == "__main__":
    main()
