"""`deepspeed --module svilm_fast.train.train` and `svilm train`: trains any task."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svilm_fast.core.errors import EXIT_BAD_INPUT, UserError
from svilm_fast.core.terminal import log_to_stderr, print
from svilm_fast.core.third_party import third_party_log
from svilm_fast.train.config.options import ConfigName, Overrides, Weights
from svilm_fast.train.run_app import run_app

if TYPE_CHECKING:
    from svilm_fast.train.config.schema import RunConfig
    from svilm_fast.train.run.session import Start

TaskName = Annotated[
    str | None,
    typer.Option(
        help="pretrain or an installed plug-in [default: the recipe's task.name, else pretrain]"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="continue from the newest checkpoint")]
AutoResume = Annotated[
    bool, typer.Option("--auto-resume", help="resume if there is a checkpoint, otherwise start")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an earlier run in run.dir")]
InitFrom = Annotated[
    Path | None, typer.Option(help="portable checkpoint (any ZeRO stage and rank count)")
]
WeightsFrom = Annotated[
    Path | None,
    typer.Option(help="portable checkpoint of which only the weights are taken"),
]
WeightsKind = Annotated[
    Weights, typer.Option(help="with --weights-from: the raw weights or their moving average")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="resume also from files that another user owns")
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="print the resolved configuration and exit")
]
PrintDeepSpeed = Annotated[
    bool, typer.Option("--print-ds-config", help="print DeepSpeed's configuration and exit")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="build on the meta device, print sizes and FLOPs, and exit"),
]
# The launchers pass it; the run reads LOCAL_RANK from the environment instead.
LocalRank = Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)]


def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    task: TaskName = None,
    resume: Resume = False,
    auto_resume: AutoResume = False,
    overwrite: Overwrite = False,
    init_from: InitFrom = None,
    weights_from: WeightsFrom = None,
    weights: WeightsKind = Weights.RAW,
    trust: Trust = False,
    print_config: PrintConfig = False,
    print_ds_config: PrintDeepSpeed = False,
    dry_run: DryRun = False,
    local_rank: LocalRank = 0,
) -> int:
    """Train a model, in one process or as one rank under `deepspeed` or `torchrun`.

    Exit codes: 0 done; 2 bad input; 3 loss or gradients not finite;

    4 another rank exited or does not respond;

    5 an evaluation failed, and the training is saved; 6 the features collapsed;

    143, 130, 138, 129 saved and stopped by SIGTERM, SIGINT, SIGUSR1, SIGHUP.

    A report that fails at the end is only a warning.
    """
    # Imported here because the settings import PyTorch, which would slow down --help.
    from svilm_fast.train.config.load import load_config

    resolved = load_config(config, overrides or [], task)
    code = print_only(resolved, print_config, print_ds_config, dry_run)
    if code is not None:
        return code
    log_of_rank()
    from svilm_fast.train.run import session

    start = session.Start(
        resume, auto_resume, overwrite, init_from, weights_from, weights is Weights.EMA, trust
    )
    check_model_chosen(config, overrides)
    return run_session(resolved, start)


def with_options_of(source: Callable[..., int], *left_out: str) -> Callable[[Any], Any]:
    """Give a command the options of `source` that it does not declare itself, besides `left_out`.

    It is called with them as keyword arguments.
    """

    def decorated(command: Any) -> Any:
        own = inspect.signature(command, eval_str=True).parameters
        kept = [option for option in own.values() if option.kind is not option.VAR_KEYWORD]
        given = inspect.signature(source, eval_str=True).parameters
        kept += [o for name, o in given.items() if name not in own and name not in left_out]
        command.__signature__ = inspect.Signature(kept, return_annotation=int)
        command.__annotations__ = {option.name: option.annotation for option in kept}
        return command

    return decorated


def print_only(
    resolved: RunConfig, print_config: bool, print_ds_config: bool, dry_run: bool
) -> int | None:
    """Print what the options ask for and return the exit code; None: the run should start."""
    if print_config:
        from svilm_fast.train.config.load import dump_config

        print(dump_config(resolved), end="")
        return 0
    if not (print_ds_config or dry_run):
        return None
    from svilm_fast.train.plan import dry_run as dry

    if print_ds_config:
        print(dry.deepspeed_json(resolved))
        return 0
    text, fits = dry.describe(resolved)
    print(text)
    return 0 if fits else EXIT_BAD_INPUT


def log_of_rank() -> None:
    """Show log records on stderr, from rank 0 also those that are only informative."""
    log_to_stderr(
        logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.WARNING,
        "%(levelname)s %(name)s: %(message)s",
    )


def check_model_chosen(config: str | None, overrides: Sequence[str] | None) -> None:
    """Raise UserError if neither a recipe nor an override chooses the model."""
    if config is None and not any(text.startswith("model.preset=") for text in overrides or []):
        raise UserError(
            "no configuration was given, and the default model is ViT-B; give a recipe with "
            "--config (`svilm config list` prints them), or choose the model, as in "
            "model.preset=tiny"
        )


def run_session(resolved: RunConfig, start: Start) -> int:
    """Run the training; returns the exit code."""
    from svilm_fast.train.run import session

    with third_party_log():
        outcome = session.train(resolved, start)
    return 128 + outcome.signal if outcome.signal else 0


def run_command(command: Callable[..., int], arguments: Sequence[str] | None = None) -> int:
    """Parse the command line of one command and run it; returns the exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return run_app(app, arguments)


def leave(code: int) -> None:
    """End the process with `code`, without waiting for threads after an error.

    After an error on one rank, gloo's threads abort a normal exit of the others with SIGABRT, which
    hides the exit code. All files are closed and flushed at this point.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        sys.exit(0)
    os._exit(code)


if __name__ == "__main__":
    leave(run_command(train))
