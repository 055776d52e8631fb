"""The facts of a run as small tables: model, task, training, machine, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from svilm_fast.report.curves import Series

Facts = dict[str, dict[str, str]]

# Section, dotted key of the resolved configuration, label.
Row = tuple[str, str, str]
OF_THE_MODEL: tuple[Row, ...] = (
    ("Model", "model.preset", "preset"),
    ("Model", "model.embed_dim", "shared space, dimensions"),
    ("Model", "video.frames", "frames of a clip"),
    ("Model", "video.image_size", "frame size, pixels"),
    ("Model", "video.num_groups", "group tokens"),
    ("Model", "video.num_segments", "temporal segments"),
    ("Model", "video.drop.rate", "video tokens dropped, share"),
    ("Model", "model.attention", "requested attention backend"),
)
OF_THE_TRAINING: tuple[Row, ...] = (
    ("Training", "training.global_batch", "global batch"),
    ("Training", "training.steps", "steps"),
    ("Training", "training.epochs", "epochs"),
    ("Training", "training.precision", "precision"),
    ("Training", "optimizer.name", "optimizer"),
    ("Training", "optimizer.lr", "peak learning rate"),
    ("Training", "deepspeed.zero_stage", "ZeRO stage"),
    ("Training", "run.seed", "seed"),
    ("Training", "data.shuffle_captions", "captions shuffled (control)"),
)
FROM_ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("device", "device"),
    ("gpu", "GPU"),
    ("world_size", "ranks"),
    ("cpu_count", "CPU cores"),
    ("threads", "threads of a rank"),
    ("python", "Python"),
    ("packages.torch", "torch"),
    ("packages.triton", "triton"),
    ("packages.deepspeed", "deepspeed"),
    ("cuda", "CUDA"),
    ("platform", "platform"),
)


def run_facts(
    config: Mapping[str, Any],
    settings: Mapping[str, str],
    environment: Mapping[str, Any],
    series: Series,
    parameters: int | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> Facts:
    """Return tables of facts by section title, without unknown values.

    config, environment: config.yaml and env.json of a run as dictionaries. settings: the task's own
    settings as dotted keys with labels; the section is named after the first part of the key.
    series: from `read_metrics`. parameters: of the model. extra: further rows by section.
    """
    of_the_task = [
        (key.partition(".")[0].capitalize(), key, label) for key, label in settings.items()
    ]
    facts: Facts = {}
    for section, key, label in (*OF_THE_MODEL, *of_the_task, *OF_THE_TRAINING):
        _add(facts, section, label, _look_up(config, key))
    if parameters is not None:
        _add(facts, "Model", "parameters", f"{parameters:,}")
    for key, label in FROM_ENVIRONMENT:
        _add(facts, "Machine", label, _look_up(environment, key))
    for label, text in _throughput(series):
        _add(facts, "Throughput", label, text)
    for section, rows in (extra or {}).items():
        for label, value in rows.items():
            _add(facts, section, label, value)
    return facts


def steady_median(series: Series, name: str) -> float | None:
    """Median over the second half of a run, which excludes warm-up; None for an unknown name."""
    if name not in series:
        return None
    values = series[name][1]
    return float(np.median(values[len(values) // 2 :]))


def _throughput(series: Series) -> Sequence[tuple[str, str | None]]:
    clips = steady_median(series, "clips_per_second")
    seconds = steady_median(series, "seconds_per_step")
    rate = steady_median(series, "model_tflops_per_second")
    waiting = steady_median(series, "data_wait_share")
    used = steady_median(series, "utilisation")
    memory = series.get("peak_memory_bytes")
    return [
        ("clips per second, all ranks", _number(clips)),
        ("seconds per step", _number(seconds)),
        ("model TFLOP per second", _number(rate)),
        ("model GFLOP per step", _number(1000 * rate * seconds if rate and seconds else None)),
        ("share of the device's peak", None if used is None else f"{used:.1%}"),
        ("share of time waiting for data", None if waiting is None else f"{waiting:.1%}"),
        ("peak memory, GiB", None if memory is None else _number(memory[1].max() / 2**30)),
    ]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _look_up(tree: Mapping[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _add(facts: Facts, section: str, label: str, value: Any) -> None:
    if value is None:
        return
    text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    facts.setdefault(section, {})[label] = text
