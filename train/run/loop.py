"""The training loop: batch, step, record, evaluate, save, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from svilm_fast.core.errors import CollapseError, EvaluationError, NonFiniteError
from svilm_fast.core.files import write_json
from svilm_fast.core.trace_ranges import phase
from svilm_fast.data.loader import ClipLoader
from svilm_fast.objectives.base import Alarm
from svilm_fast.train.checkpoint.store import TrainerState, save_checkpoint, tag_of
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.engine.engine import Engine, StepResult
from svilm_fast.train.folder.disk import DiskFullError
from svilm_fast.train.folder.ownership import claim
from svilm_fast.train.ranks.lost_connection import is_lost_connection
from svilm_fast.train.ranks.signals import PendingSignal
from svilm_fast.train.run.hooks import Hook
from svilm_fast.train.run.metrics_log import MetricsLog
from svilm_fast.train.run.profiler import StepProfiler
from svilm_fast.train.run.progress import Display, figure_lines
from svilm_fast.train.run.schedule import learning_rate
from svilm_fast.train.run.straggler import OwnWork, losses_end, straggler_figures
from svilm_fast.train.run.throughput import Meter, peak_memory_bytes
from svilm_fast.train.run_app import one_line

MakeInputs = Callable[[Any, int], Any]


@dataclass(frozen=True)
class RunEvaluator:
    """An evaluator as the loop calls it: on every rank, with the same result.

    name: namespace of its metrics. every_steps: steps between evaluations, 0 for none. at_end:
    whether it runs after the last step. run: returns the metrics at a step, by full name.
    """

    name: str
    every_steps: int
    at_end: bool
    run: Callable[[Engine, int], Mapping[str, float]]


@dataclass
class Averages:
    """Means of the metrics over the steps since the last record, kept on the device."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: int = 0
    norm_sum: float = 0.0
    skipped: int = 0

    def add(self, result: StepResult) -> None:
        """Add one step; a step that was not applied only counts as skipped."""
        if not result.applied:
            self.skipped += 1
            return
        self.steps += 1
        self.norm_sum += result.gradient_norm or 0.0
        for name, value in {"loss": result.loss, **result.metrics}.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def take(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Return this rank's means and the values that are equal on all ranks, then reset."""
        means = {name: total / self.steps for name, total in self.sums.items()}
        alike = {"skipped_steps": float(self.skipped)}
        if self.steps:
            alike["gradient_norm"] = self.norm_sum / self.steps
        self.sums, self.steps, self.norm_sum, self.skipped = {}, 0, 0.0, 0
        return means, alike


@dataclass
class Outcome:
    """How a loop ended.

    step: steps done. signal: number of the signal that stopped it, 0 without one. finished: whether
    the schedule is complete.
    """

    step: int
    signal: int
    finished: bool


class Loop:
    """Trains an engine until the last step, a signal, or too many non-finite steps."""

    def __init__(
        self,
        engine: Engine,
        loader: ClipLoader,
        config: RunConfig,
        files: RunFiles,
        *,
        total_steps: int,
        start_step: int,
        make_inputs: MakeInputs,
        evaluators: Sequence[RunEvaluator],
        metrics: MetricsLog,
        display: Display,
        meter: Meter,
        pending: PendingSignal,
        hooks: Sequence[Hook] = (),
        alarms: Callable[[int, Mapping[str, float]], Sequence[Alarm]] = lambda step, values: (),
    ) -> None:
        self.engine, self.loader, self.config, self.files = engine, loader, config, files
        self.total_steps, self.step = total_steps, start_step
        self.make_inputs, self.evaluators = make_inputs, evaluators
        self.metrics, self.display, self.meter, self.pending = metrics, display, meter, pending
        self.alarms = alarms
        self.averages = Averages()
        self.work = OwnWork(engine.ranks.device)
        self.losses_end_work = losses_end(self.work, engine)
        self.bad_in_a_row = 0
        self.stepped = False
        self.saved_at = start_step
        self.evaluated = set(engine.ranks.share(metrics.evaluated))
        self.hooks = list(hooks)
        if engine.ranks.is_first and config.training.profile.steps:
            profiler = StepProfiler(config.training.profile, files.profile, self._note_profile)
            self.hooks.append(profiler)

    def run(self) -> Outcome:
        """Train, and save the state at the end, at a limit or at a signal."""
        stop_after = self.config.training.stop_after_steps or self.total_steps
        last = min(self.total_steps, stop_after)
        stream = self.loader.forever()
        signal = 0
        self.meter.read()
        self.engine.refresh_teacher()
        self._evaluate_where_due()  # the run was stopped between a save and its evaluation
        for hook in self.hooks:
            hook.before_run(self.engine)
        while self.step < last and not signal:
            self.engine.ranks.reached(self.step + 1)
            began = time.perf_counter()
            with phase("data"):
                batch = next(stream)
            waited = time.perf_counter() - began
            self.meter.add_step(waited)
            for hook in self.hooks:
                hook.before_step(self.step + 1, batch)
            self.work.begin(waited)
            result = self._train_on(batch)
            if not self.stepped:
                self.stepped = True  # compilation and warm-up are over on all ranks
                self._limit_waits(solo=False)
            self.step += 1
            for hook in self.hooks:
                hook.after_step(self.step, result)
            signal = result.stop_signal
            self.averages.add(result)
            if result.applied:
                self.engine.update_average(self.step)
            self._check(result, batch)
            self.display.step(self.step)
            self._after_step(last, signal)
        self._limit_waits(solo=True)
        for hook in self.hooks:
            hook.after_run()
        if self.averages.steps:
            self._record()
        if self.saved_at != self.step:
            self._save(must=True)
        return Outcome(self.step, signal, finished=not signal and self.step >= self.total_steps)

    def evaluate_at_end(self) -> None:
        """Run the evaluators that are due after the last step of the schedule and not yet done."""
        for evaluator in self.evaluators:
            due = evaluator.at_end and self.step == self.total_steps
            if due and (evaluator.name, self.step) not in self.evaluated:
                self._evaluate(evaluator)

    def _train_on(self, batch: Any) -> StepResult:
        rate = learning_rate(
            self.step, self.total_steps, self.config.optimizer.lr, self.config.schedule
        )
        with phase("inputs"):
            inputs = self.make_inputs(batch, self.step)
        if not self.losses_end_work:
            self.work.end()
        return self.engine.step(inputs, rate, self.pending.number, self._after_backward)

    def _after_backward(self) -> None:
        for hook in self.hooks:
            hook.after_backward(self.step + 1)

    def _after_step(self, last: int, signal: int) -> None:
        if self.step % self.config.logging.every_steps == 0 or self.step == last:
            self._record()
        every = self.config.checkpoint.every_steps
        if every and self.step % every == 0:
            self._paused(self._save)
        if not signal:
            self._evaluate_where_due()

    def _evaluate_where_due(self) -> None:
        if not 0 < self.step < self.total_steps:
            return
        for evaluator in self.evaluators:
            due = evaluator.every_steps and self.step % evaluator.every_steps == 0
            if not due or (evaluator.name, self.step) in self.evaluated:
                continue
            # Save first: an evaluation can fail on data that training never reads.
            if self.saved_at != self.step:
                self._paused(self._save)
            self._paused(partial(self._evaluate, evaluator))

    def _paused(self, action: Callable[[], None]) -> None:
        with self.meter.paused():
            self._limit_waits(solo=True)
            action()
            self._limit_waits(solo=not self.stepped)

    def _limit_waits(self, *, solo: bool) -> None:
        self.engine.ranks.limit_waits(self.config.distributed, solo=solo)

    def _record(self) -> None:
        means, alike = self.averages.take()
        values = self.engine.ranks.mean(means)
        rate = learning_rate(
            self.step - 1, self.total_steps, self.config.optimizer.lr, self.config.schedule
        )
        (memory,) = self.engine.ranks.agree_max(peak_memory_bytes(self.engine.ranks.device))
        values |= alike | {"learning_rate": rate, "peak_memory_bytes": memory} | self.meter.read()
        values |= straggler_figures(self.engine.ranks.numbers(self.work.take()))
        self.metrics.write(self.step, values)
        self.display.record(self.step, values)
        # The values are equal on all ranks, and so is the end of the run.
        for alarm in self.alarms(self.step, values):
            if alarm.stop:
                raise CollapseError(f"step {self.step}: {alarm.text}")
            self.display.say(f"WARNING step {self.step}: {alarm.text}")

    def _evaluate(self, evaluator: RunEvaluator) -> None:
        try:
            values = evaluator.run(self.engine, self.step)
        except Exception as error:
            if is_lost_connection(error):  # the rank monitor reports the cause
                raise
            whole = self.saved_at == self.step
            saved = "is saved" if whole else "is NOT saved, because the disk was full"
            raise EvaluationError(
                f"the evaluation of step {self.step} failed: {one_line(error)}; the training up to "
                f"this step {saved}: fix the problem, then run again with --resume"
            ) from error
        self.evaluated.add((evaluator.name, self.step))
        self.metrics.write(self.step, values)
        names = {name: name.rpartition("/")[2].replace("_", " ") for name in values}
        shown = " | ".join(f"{names[name]} {_figure(value)}" for name, value in values.items())
        self.display.say(figure_lines(f"step {self.step} {evaluator.name}", shown))

    def _save(self, *, must: bool = False) -> None:
        """Save; on a full disk skip the save if `checkpoint.when_full` allows it and not `must`."""
        state = TrainerState(self.step, self.loader.state_dict())
        settings = self.config.checkpoint
        if self.engine.ranks.is_first:
            claim(self.files, saves=[self.files.checkpoints / tag_of(self.step)])
        try:
            path = save_checkpoint(
                self.engine,
                self.files.checkpoints,
                state,
                settings.keep,
                copies=self.files.copied,
                before=self._before_save,
                during=self._during_save,
            )
        except DiskFullError as error:
            if must or settings.when_full == "stop":
                raise
            self.display.say(f"not saved: {error}")
            return
        for hook in self.hooks:
            hook.after_save(self.step, path)
        self.saved_at = self.step
        self.display.say(f"saved {path}")

    def _before_save(self, folder: Path) -> None:
        for hook in self.hooks:
            hook.before_save(self.step, folder)

    def _during_save(self, folder: Path) -> None:
        for hook in self.hooks:
            hook.during_save(self.step, folder)

    def _check(self, result: StepResult, batch: Any) -> None:
        self.bad_in_a_row = 0 if result.applied else self.bad_in_a_row + 1
        if result.applied:
            return
        dumps = [
            self.files.root / f"non_finite_step_{self.step}_rank_{rank}.json"
            for rank in range(self.engine.ranks.world_size)
        ]
        if self.engine.ranks.is_first:
            claim(self.files, *dumps)
        rank = self.engine.ranks.rank
        dump = dumps[rank]
        write_json(
            dump,
            {
                "step": self.step,
                "rank": rank,
                "loss": float(result.loss),
                "gradient_norm": result.gradient_norm,
                "metrics": {name: float(value) for name, value in result.metrics.items()},
                "ids": list(batch.ids),
            },
        )
        if self.bad_in_a_row >= self.config.training.max_non_finite_steps:
            raise NonFiniteError(
                f"loss or gradients of step {self.step} are not finite on at least one rank; no "
                f"parameter was changed. The samples are listed in {dump.parent}/non_finite_step_"
                f"{self.step}_rank_*.json; lower optimizer.lr, or allow some with "
                "training.max_non_finite_steps"
            )
        self.display.say(f"step {self.step} was skipped: loss or gradients are not finite")

    def _note_profile(self, path: Path) -> None:
        claim(self.files, path)
        self.display.say(f"wrote {path}")


def _figure(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"
