"""`deepspeed --module svilm_fast.train.pretrain` and `svilm pretrain`: training of one task."""

from __future__ import annotations

from collections.abc import Sequence

from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.config.options import ConfigName, Overrides
from svilm_fast.train.config.weights import Weights
from svilm_fast.train.train import (
    AutoResume,
    DryRun,
    InitFrom,
    LocalRank,
    Overwrite,
    PrintConfig,
    PrintDeepSpeed,
    Resume,
    Trust,
    WeightsFrom,
    WeightsKind,
    leave,
    run_command,
    train,
)

__all__ = ["leave", "main", "pretrain"]


def pretrain(
    overrides: Overrides = None,
    config: ConfigName = None,
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
    """Train a model; under `deepspeed` or `torchrun` as one rank of many, else alone.

    Exit codes: 0 done; 2 bad input; 3 loss or gradients not finite; 4 another rank ended or does
    not answer; 5 an evaluation failed, the training is saved; 143, 130, 138 or 129 saved and
    stopped by SIGTERM, SIGINT, SIGUSR1 or SIGHUP (run again with --resume). A report that fails at
    the end is a warning.
    """
    return train(
        overrides,
        config,
        DEFAULT_TASK,
        resume,
        auto_resume,
        overwrite,
        init_from,
        weights_from,
        weights,
        trust,
        print_config,
        print_ds_config,
        dry_run,
        local_rank,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and pre-train; returns the exit code."""
    return run_command(pretrain, arguments)


if __name__ == "__main__":
    leave(main())
