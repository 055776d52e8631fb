"""Predicted cost of the trainings of a table, by the model of `svilm plan`."""

from __future__ import annotations

import math
from functools import partial

from svilm_fast.core.errors import ConfigError, UserError
from svilm_fast.data.errors import DataError
from svilm_fast.train.campaigns.jobs import TableJob
from svilm_fast.train.campaigns.table import ResultTable
from svilm_fast.train.checkpoint.inherit import inherited
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.devices import GPUS
from svilm_fast.train.plan.links import links_of
from svilm_fast.train.plan.report import make_plan
from svilm_fast.train.plan.step_time import UTILISATION, step_time
from svilm_fast.train.plan.workload import workload_of

GPU = "h100"
PER_NODE = 8
PREDICTED = (
    f"predicted, not measured: {GPU.upper()} at {UTILISATION:.0%} of its bf16 rate, nothing "
    "overlapped; without evaluation, commands and loading"
)


def checked_config(table: ResultTable, job: TableJob) -> RunConfig | None:
    """Return the configuration of a training, None for a command. Raises ConfigError.

    That of a fine-tuning has the model of the training before it.
    """
    spec = table.runs[job.name]
    if spec.config is None:
        return None
    settings = [text for text in job.arguments if "=" in text]
    complete = None
    if spec.weights_from is not None:
        assert job.before is not None
        trained = [link for link in job.before.chain() if link.trains]
        if trained:
            model = checked_config(table, trained[-1])
            assert model is not None
            complete = partial(inherited, run=model.model_dump(mode="json"))
    try:
        return load_config(spec.config, settings, spec.task, complete)
    except ConfigError as error:
        raise ConfigError(f"runs.{job.name}: {error}") from error


def gpu_hours(table: ResultTable, job: TableJob, config: RunConfig) -> float | None:
    """Return the predicted GPU hours of a training on `table.gpus` GPUs.

    None for a head whose size the training data decide, where they are missing. Raises UserError
    for a run of epochs that does not tell its clips, and where nothing fits.
    """
    assert table.gpus is not None
    # A small head needs no more GPUs than its batch has samples.
    gpus = math.gcd(table.gpus, config.training.global_batch)
    device = GPUS[GPU]
    links = links_of(device, None, PER_NODE)
    try:
        workload = workload_of(config, gpus, on_gpu=True)
    except DataError:
        return None
    plan = make_plan(workload, device, links, device.memory)
    if plan.problem is not None:
        raise UserError(f"runs.{job.name}: on {gpus} GPUs: {plan.problem}")
    time = step_time(plan.workload, plan.choice, links, device.peak)
    return steps_of(table, job, config) * time.total * gpus / 3600


def steps_of(table: ResultTable, job: TableJob, config: RunConfig) -> int:
    """Return the steps of a training; of epochs, by the clips that the table names."""
    training, clips = config.training, table.runs[job.name].clips
    if training.steps is not None:
        return training.steps
    if training.epochs is None or clips is None:
        raise UserError(f"runs.{job.name}: set training.steps, or clips for the epochs of a run")
    return max(1, int(training.epochs * (clips // training.global_batch)))
