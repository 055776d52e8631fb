"""One training run from configuration to report: builds its parts in order and runs the loop."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.core.terminal import print
from svilm_fast.core.text import counted
from svilm_fast.data.loader import ClipLoader, build_loader
from svilm_fast.data.pipeline import shared_memory_checked
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.tasks.base import EvaluationRequest, Evaluator, Task, task_of
from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.checkpoint.portable import (
    load_average,
    load_masters,
    load_moments,
    load_weights,
    load_weights_in_part,
    save_portable,
    write_masters,
)
from svilm_fast.train.checkpoint.portable_files import drafts_of
from svilm_fast.train.checkpoint.resume import check_resume, check_same_state, check_same_task
from svilm_fast.train.checkpoint.store import load_checkpoint, newest_verified
from svilm_fast.train.config.deepspeed import local_batch_of
from svilm_fast.train.config.options import Weights
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.engine.engine import Engine, start_engine
from svilm_fast.train.environment import seed_everything, use_launcher_variables
from svilm_fast.train.folder import prepare as run_folder
from svilm_fast.train.folder.lock import FolderLock
from svilm_fast.train.folder.ownership import check_not_foreign, claim
from svilm_fast.train.plan.resolve import device_peak, resolve_on_ranks
from svilm_fast.train.ranks.consistency import check_same_settings
from svilm_fast.train.ranks.process_group import Ranks, joined_ranks
from svilm_fast.train.ranks.signals import deferred_signals
from svilm_fast.train.run.attention_check import check_attention
from svilm_fast.train.run.evaluate import (
    check_names,
    checked_metrics,
    files_of,
    result_name,
    write_result,
)
from svilm_fast.train.run.hooks import installed_hooks
from svilm_fast.train.run.loop import Loop, Outcome, RunEvaluator
from svilm_fast.train.run.metrics_log import MetricsLog, check_trackers
from svilm_fast.train.run.progress import Display
from svilm_fast.train.run.reporting import report_at_end
from svilm_fast.train.run.starting_weights import load_towers
from svilm_fast.train.run.throughput import Meter, processor_seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How a run begins.

    resume: continue from the newest verified checkpoint, which must exist. auto_resume: continue
    from a checkpoint if there is one, else start fresh. overwrite: replace an earlier run.
    init_from: portable checkpoint whose weights, moments, step and data position are loaded.
    weights_from: portable checkpoint of which only the weights are loaded; they may differ from the
    model as far as the task's `initial_weights` allows. average: load the average of the weights of
    weights_from instead. trust: also resume from files that another user may have written.
    """

    resume: bool = False
    auto_resume: bool = False
    overwrite: bool = False
    init_from: Path | None = None
    weights_from: Path | None = None
    average: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        if self.init_from is not None and self.weights_from is not None:
            raise UserError(
                "--init-from and --weights-from exclude each other: the first continues another "
                "run, the second loads only its weights"
            )
        other = {"--init-from": self.init_from, "--weights-from": self.weights_from}
        given = [name for name, value in other.items() if value is not None]
        if self.resume and (self.overwrite or self.auto_resume or given):
            flags = ["--overwrite"] * self.overwrite + ["--auto-resume"] * self.auto_resume + given
            raise UserError(
                f"--resume and {flags[0]} exclude each other, because --resume continues the run "
                "in run.dir: remove one of them"
            )
        if self.average and self.weights_from is None:
            raise UserError("--weights ema needs --weights-from, which is missing")

    @property
    def fresh(self) -> bool:
        """Whether the run does not continue one in its folder."""
        return not (self.resume or self.auto_resume)


def train(config: RunConfig, start: Start) -> Outcome:
    """Run the training that `config` describes in this process, as one rank of its group."""
    use_launcher_variables()
    local_batch_of(config, int(os.environ["WORLD_SIZE"]))  # raises before any rank waits
    with joined_ranks(config.distributed) as ranks:
        outcome = train_as_rank(config, start, ranks)
    # The process group has ended, so no rank waits, or times out, while rank 0 writes the report.
    if ranks.is_first and outcome.finished and config.report.at_end:
        gc.collect()  # reference cycles of DeepSpeed's engine keep device memory
        report_at_end(config, ranks.device)
    return outcome


def train_as_rank(config: RunConfig, start: Start, ranks: Ranks) -> Outcome:
    """Run the training inside the process group of `ranks`."""
    check_same_settings(config, ranks)
    files = RunFiles(Path(config.run.dir))
    config, reasons = resolve_on_ranks(config, ranks, None if start.fresh else files.config)
    if ranks.is_first and reasons:
        print("\n".join(reasons), flush=True)
    with held_folder(files, ranks) as lock:
        return _train_in_folder(config, start, ranks, files, lock)


@contextmanager
def held_folder(files: RunFiles, ranks: Ranks) -> Iterator[FolderLock]:
    """Lock the run folder on rank 0; every rank raises the error if another run holds it."""
    lock = FolderLock(files.root)
    ranks.from_first(lock.acquire)
    try:
        yield lock
    finally:
        lock.release()


def _train_in_folder(
    config: RunConfig, start: Start, ranks: Ranks, files: RunFiles, lock: FolderLock
) -> Outcome:
    local_batch = local_batch_of(config, ranks.world_size)
    check_attention(config, ranks.device)
    check_trackers(config)
    if start.fresh:
        ranks.from_first(lambda: run_folder.check_free(files, overwrite=start.overwrite))
    else:
        ranks.from_first(partial(check_same_task, files, config))
    task = task_of(config)
    seed_everything(
        config.run.seed, deterministic=config.run.deterministic, threads=config.run.threads
    )
    train_table = task.samples("train")
    source = start.init_from or start.weights_from
    tokenizer = run_folder.shared_tokenizer(
        files, config, train_table, ranks, fresh=start.fresh, source=source
    )
    dataset = task.dataset("train", tokenizer, train=True, table=train_table)
    if not start.fresh:
        ranks.from_first(lambda: check_same_state(files, task.state()))
    held_out = _open_evaluators(task, config, tokenizer, ranks)
    if ranks.is_first:
        _warn_of_untrained_locks(config, start)
        opened = [dataset, *(evaluator.dataset for evaluator in held_out)]
        for clips in {id(clips): clips for clips in opened}.values():
            print(f"data.{clips.split}: {clips.report.summary()}", flush=True)
    evaluated = [evaluator.dataset for evaluator in held_out]
    with (
        shared_memory_checked(config.data, dataset, evaluated),
        build_loader(
            config.data,
            dataset,
            batch_size=local_batch,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=config.run.seed,
            pin_memory=ranks.device.type == "cuda",
        ) as loader,
    ):
        model = task.model()
        resumes = not start.fresh and (start.resume or newest_verified(files.checkpoints))
        towers = {} if resumes else load_towers(model, config, ranks)
        described = _load_initial_weights(model, task, start, ranks)
        if not resumes:  # else the task's state was compared
            ranks.from_first(lambda: task.check_weights(model))
        engine = start_engine(model, config, ranks)
        write_masters(engine, towers)
        if source is not None:
            load_masters(engine, source, average=start.average)
        start_step = 0
        if described is not None:
            assert start.init_from is not None
            load_moments(engine, start.init_from)
            load_average(engine, start.init_from)
            loader.load_state_dict(described["data"])
            start_step = int(described["step"])
        if not start.fresh:
            start_step = _resume(engine, loader, files, start, start_step)
        # No rank can refuse to start from here on, so the folder may be changed.
        ranks.barrier()
        lock.keep()
        run_folder.open_folder(
            files, config, tokenizer, ranks, fresh=start.fresh, state=task.state()
        )
        evaluators = [_in_the_run(evaluator, files) for evaluator in held_out]
        return _loop(task, config, engine, loader, files, start_step, evaluators)


def _load_initial_weights(
    model: nn.Module, task: Task, start: Start, ranks: Ranks
) -> dict[str, Any] | None:
    """Load the weights of --init-from or --weights-from; returns the state.json of the former."""
    if start.init_from is not None:
        return load_weights(model, start.init_from)
    if start.weights_from is None:
        return None
    report = load_weights_in_part(
        model, start.weights_from, task.initial_weights(), average=start.average
    )
    if ranks.is_first:
        for line in report.lines(start.weights_from):
            print(line, flush=True)
    return None


def _resume(
    engine: Engine, loader: ClipLoader, files: RunFiles, start: Start, start_step: int
) -> int:
    """Load the newest checkpoint; returns its step, or `start_step` if --auto-resume finds none."""
    state = load_checkpoint(engine, files.checkpoints, trust=start.trust)
    if state is None:
        if start.resume:
            raise CheckpointError(
                f"nothing to resume: no checkpoint in {files.checkpoints}; start without --resume"
            )
        engine.ranks.from_first(lambda: run_folder.check_free(files, overwrite=start.overwrite))
        if engine.ranks.is_first:
            source = start.init_from or start.weights_from or "scratch"
            print(f"no checkpoint in {files.checkpoints}: starting from {source}", flush=True)
        return start_step
    assert state.source is not None
    engine.ranks.from_first(partial(check_resume, files, state.source, engine.config))
    loader.load_state_dict(state.data)
    if engine.ranks.is_first:
        print(f"resumed at step {state.step}", flush=True)
    return state.step


def _warn_of_untrained_locks(config: RunConfig, start: Start) -> None:
    fresh = start.fresh and start.init_from is None and start.weights_from is None
    reads = config.objectives.reads()
    # A tower that no objective reads is locked to leave it out.
    texts = config.task.own_loss or reads.texts or reads.nouns
    for tower in ("video", "text") if texts else ("video",):
        loaded = getattr(config.weights, tower) is not None
        if fresh and not loaded and getattr(config, tower).lock is not False:
            log.warning(
                "%s.lock freezes weights that were never trained: load some with weights.%s or "
                "--weights-from",
                tower,
                tower,
            )


def _open_evaluators(
    task: Task, config: RunConfig, tokenizer: Tokenizer, ranks: Ranks
) -> list[Evaluator]:
    settings = config.evaluation
    if getattr(config.data, settings.split) is None:
        # The evaluators of other tasks may have a timing of their own.
        asked = settings.every_steps or settings.at_end or config.task.name != DEFAULT_TASK
        if ranks.is_first and asked:
            log.warning("no evaluation during the run: data.%s is not set", settings.split)
        return []
    every = task.evaluators(tokenizer, settings.split, settings.max_clips)
    evaluators = [one for one in every if one.when.every_steps or one.when.at_end]
    check_names(evaluators)
    for evaluator in evaluators:
        clips = min(len(evaluator.dataset), settings.max_clips or len(evaluator.dataset))
        if clips < ranks.world_size:
            when, own = evaluator.when, " (this evaluator has a timing of its own)"
            follows = (when.every_steps, when.at_end) == (settings.every_steps, settings.at_end)
            raise UserError(
                f"data.{settings.split} has {counted(clips, 'clip')} to evaluate on "
                f"{counted(ranks.world_size, 'rank')} ({evaluator.name}); give at least one clip "
                "for each rank, start fewer ranks, or set evaluation.at_end=false and "
                f"evaluation.every_steps=0{'' if follows else own}"
            )
    return evaluators


def _in_the_run(evaluator: Evaluator, files: RunFiles) -> RunEvaluator:
    """Adapt an evaluator to the loop; rank 0 writes the result files of each step."""

    def run(engine: Engine, step: int) -> Mapping[str, float]:
        request = EvaluationRequest(engine.ranks.device, in_training=True)
        with engine.evaluated_weights():
            result = evaluator.run(engine.model, request)
        if engine.ranks.is_first:
            name = result_name(f"{evaluator.file_name}_step_{step:08d}")
            paths = files_of(files.evaluation, name)
            check_not_foreign(files, paths)
            claim(files, *paths)
            average = engine.ema is not None and engine.config.ema.evaluate
            weights = Weights.EMA if average else Weights.RAW
            write_result(result, files.evaluation, name, step=step, weights=weights)
        return checked_metrics(evaluator, result)

    return RunEvaluator(evaluator.name, evaluator.when.every_steps, evaluator.when.at_end, run)


def _loop(
    task: Task,
    config: RunConfig,
    engine: Engine,
    loader: ClipLoader,
    files: RunFiles,
    start_step: int,
    evaluators: list[RunEvaluator],
) -> Outcome:
    ranks = engine.ranks
    total_steps = total_steps_of(config, loader)
    metrics = MetricsLog(config, files, first=ranks.is_first, start_step=start_step)
    display = Display(
        config.logging.progress,
        first=ranks.is_first,
        total_steps=total_steps,
        start_step=start_step,
        on_gpu=ranks.device.type == "cuda",
        metrics=task.metrics(),
    )
    flops = task.flops()
    meter = Meter(
        config.training.global_batch,
        ranks.world_size,
        None if flops is None else flops.total,
        device_peak(ranks.device),
        processor=processor_seconds if ranks.device.type == "cpu" else None,
    )
    try:
        with deferred_signals() as pending:
            loop = Loop(
                engine,
                loader,
                config,
                files,
                total_steps=total_steps,
                start_step=start_step,
                make_inputs=lambda batch, step: task.inputs(batch, step, ranks),
                evaluators=evaluators,
                metrics=metrics,
                display=display,
                meter=meter,
                pending=pending,
                hooks=installed_hooks(),
                alarms=task.alarms,
            )
            outcome = loop.run()
            # After a signal time is short, and the checkpoint is all that a resume needs.
            if config.checkpoint.portable_at_end and not outcome.signal:
                if ranks.is_first:
                    claim(files, saves=drafts_of(files.portable))
                save_portable(
                    engine, files.portable, outcome.step, loader.state_dict(), files.copied
                )
            if not outcome.signal:
                loop.evaluate_at_end()
        if ranks.is_first:
            if outcome.signal:
                display.say(_stopped(outcome))
            display.say(f"data.train, as listed: {loader.dataset.report.summary()}")
            display.say(f"data.train, as read: {loader.skips.summary()} (rank 0)")
        engine.close()
        return outcome
    finally:
        display.close()
        metrics.close()


def _stopped(outcome: Outcome) -> str:
    return (
        f"stopped by {signal.Signals(outcome.signal).name} at step {outcome.step}, which is saved; "
        "continue with --resume. The portable checkpoint, which evaluation and report need, is "
        "written when the run finishes"
    )


def total_steps_of(config: RunConfig, loader: ClipLoader) -> int:
    """Return the optimizer steps of the whole run."""
    if config.training.steps is not None:
        return config.training.steps
    assert config.training.epochs is not None
    return max(1, round(config.training.epochs * len(loader)))
