"""`deepspeed --module svilm_fast.train.finetune` and `svilm finetune`: a task on given weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from svilm_fast.core.errors import UserError
from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.config.options import ConfigName, Overrides, Weights
from svilm_fast.train.config.recipes import preset_names
from svilm_fast.train.train import (
    Resume,
    check_model_chosen,
    leave,
    log_of_rank,
    print_only,
    run_command,
    run_session,
    train,
    with_options_of,
)

TaskToTrain = Annotated[
    str, typer.Argument(metavar="TASK", help="a built-in task or an installed plug-in")
]
WeightsFrom = Annotated[
    Path | None,
    typer.Option(help="run folder or portable checkpoint: its weights, model and tokenizer"),
]
FromScratch = Annotated[
    bool, typer.Option("--from-scratch", help="start from random weights, for comparison")
]


@with_options_of(train, "task", "init_from")
def finetune(
    task: TaskToTrain,
    overrides: Overrides = None,
    config: ConfigName = None,
    weights_from: WeightsFrom = None,
    from_scratch: FromScratch = False,
    resume: Resume = False,
    **options: Any,
) -> int:
    """Train a task on the weights of a pre-training run, on one rank or many.

    Without --config the recipe is configs/tasks/TASK.yaml; with --resume it is the run's own.

    The model and its tokenizer are those of --weights-from. KEY=VALUE settings win over both.

    Exit codes are those of `svilm train`.
    """
    _check_start(task, resume, from_scratch, weights_from)
    from svilm_fast.train.checkpoint.inherit import config_of, inherited, portable_of, run_dir_of
    from svilm_fast.train.config.load import load_config
    from svilm_fast.train.config.run_files import RunFiles
    from svilm_fast.train.config.yaml_file import read_yaml

    recipe, source = config or default_recipe(task), None
    if weights_from is not None:
        weights_from = portable_of(weights_from)
        source = config_of(weights_from)
    elif resume:
        kept = RunFiles(run_dir_of(recipe, overrides or [])).config
        if kept.is_file():  # otherwise the run says what is missing
            recipe, source = config or str(kept), kept
    complete = None if source is None else partial(inherited, run=read_yaml(source))
    resolved = load_config(recipe, overrides or [], task, complete)
    printed = ("print_config", "print_ds_config", "dry_run")
    code = print_only(resolved, *(options[name] for name in printed))
    if code is not None:
        return code
    log_of_rank()
    from svilm_fast.train.run.session import Start

    if source is None:
        check_model_chosen(recipe, overrides)
    start = Start(
        resume=resume,
        auto_resume=options["auto_resume"],
        overwrite=options["overwrite"],
        weights_from=weights_from,
        average=options["weights"] is Weights.EMA,
        trust=options["trust"],
    )
    return run_session(resolved, start)


def default_recipe(task: str) -> str | None:
    """Return the name of a task's packaged recipe, or None."""
    name = f"tasks/{task}"
    return name if name in preset_names() else None


def _check_start(task: str, resume: bool, from_scratch: bool, weights_from: Path | None) -> None:
    if task == DEFAULT_TASK:
        raise UserError("pre-training is not a fine-tuning: use `svilm pretrain`")
    if resume:
        if from_scratch or weights_from is not None:
            raise UserError(
                "--resume continues the run in run.dir and takes its weights from there: leave "
                f"out {'--from-scratch' if from_scratch else '--weights-from'}"
            )
    elif from_scratch == (weights_from is not None):
        raise UserError(
            "give either --weights-from RUN, whose weights the task starts from, or --from-scratch "
            "for random weights" + ("; not both" if from_scratch else "")
        )


if __name__ == "__main__":
    leave(run_command(finetune))
