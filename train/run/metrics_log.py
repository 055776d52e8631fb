"""Writes the metrics of a run as JSON lines, and optionally to TensorBoard, wandb or trackio."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.files import write_atomically, write_json
from svilm_fast.core.metric_names import namespace_of
from svilm_fast.core.records import read_records
from svilm_fast.core.text import counted
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.folder.ownership import claim

log = logging.getLogger(__name__)

TRACKERS = ("wandb", "trackio")


class Sink(Protocol):
    """Takes records of numbers."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def close(self) -> None:
        """Flush and close."""


def drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the records after `step`, because a resumed run repeats these steps.

    Returns the remaining records. Damaged lines are removed too, with a warning.
    """
    if not path.is_file():
        return []
    before = path.read_bytes()
    records, damaged = read_records(before)
    if damaged:
        log.warning("%s: %s left out", path, counted(damaged, "damaged line"))
    kept = [(line, record) for line, record in records if record["step"] <= step]
    after = b"".join(line + b"\n" for line, _ in kept)
    if after != before:
        write_atomically(path, after)
    return [record for _, record in kept]


class JsonLines:
    """One JSON object per line; numbers that JSON cannot hold become null."""

    def __init__(self, path: Path) -> None:
        self.file: TextIO = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        clean = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self.file.write(json.dumps({"step": step, **clean}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Event files for TensorBoard; names are grouped by evaluator or by their first word."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            group, _, rest = key.partition("_")
            plain = "/" in key or not rest
            self.writer.add_scalar(key if plain else f"{group}/{rest}", value, step)

    def close(self) -> None:
        self.writer.close()


def check_trackers(config: RunConfig) -> None:
    """Raise ConfigError if a tracker is enabled but not installed."""
    for package in TRACKERS:
        if getattr(config.logging, package) and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"logging.{package}=true, but {package} is not installed; "
                f"pip install 'svilm-fast[{package}]'"
            )


def tracking_id(files: RunFiles, resumed: bool) -> str:
    """Return the id of this run for trackers: the saved one if it is resumed, else a new one."""
    path = files.tracking
    if resumed and path.is_file():
        try:
            return str(json.loads(path.read_bytes())["id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning("%s is damaged: the trackers will show this run as a new one", path)
    identity = secrets.token_hex(4)
    write_json(path, {"id": identity})
    return identity


class Tracker:
    """wandb or trackio; a resumed run continues the tracker's run with the same id."""

    def __init__(self, package: str, config: RunConfig, identity: str, resumed: bool) -> None:
        check_trackers(config)
        self.client: Any = importlib.import_module(package)
        resume = "allow" if resumed else "never"
        shared = {"project": config.logging.project, "config": config.model_dump(mode="json")}
        if package == "wandb":
            self.client.init(
                **shared,
                name=config.run.name,
                id=identity,
                resume=resume,
                dir=config.run.dir,
                # A resumed run may have more steps than before.
                allow_val_change=resumed,
            )
        else:
            # trackio finds a run by its name.
            self.client.init(**shared, name=f"{config.run.name}-{identity}", resume=resume)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.client.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run on the tracker's side."""
        self.client.finish()


class MetricsLog:
    """Sends every record to all sinks; there are none on ranks other than 0.

    evaluated: the evaluations that a resumed run finds in the log, as (evaluator, step).
    """

    def __init__(self, config: RunConfig, files: RunFiles, *, first: bool, start_step: int) -> None:
        self.sinks: list[Sink] = []
        self.evaluated: list[tuple[str, int]] = []
        self.failed = False
        if not first:
            return
        records = drop_after(files.metrics, start_step)
        self.evaluated = [
            (namespace, record["step"])
            for record in records
            for namespace in dict.fromkeys(map(namespace_of, record))
            if namespace
        ]
        self.sinks.append(JsonLines(files.metrics))
        if config.logging.tensorboard:
            before = set(files.tensorboard.glob("*"))
            self.sinks.append(
                TensorBoard(files.tensorboard, start_step + 1 if start_step else None)
            )
            claim(files, *sorted(set(files.tensorboard.glob("*")) - before))
        wanted = [package for package in TRACKERS if getattr(config.logging, package)]
        identity = tracking_id(files, start_step > 0) if wanted else ""
        self.sinks += [Tracker(package, config, identity, start_step > 0) for package in wanted]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self.sinks:
            self._attempt(partial(sink.write, step, values))

    def close(self) -> None:
        for sink in self.sinks:
            self._attempt(sink.close)

    def _attempt(self, act: Callable[[], None]) -> None:
        """Warn once if a log cannot be written; the training continues without it."""
        try:
            act()
        except OSError as error:
            if not self.failed:
                log.warning("metrics cannot be written; the run continues without them: %s", error)
            self.failed = True
