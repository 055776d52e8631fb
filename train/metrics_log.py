"""Where the numbers of a run go: JSON lines always, TensorBoard, wandb or trackio when asked."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from svilm_fast.train.config import RunConfig
from svilm_fast.train.errors import ConfigError
from svilm_fast.train.files import RunFiles


class Sink(Protocol):
    """Takes records of numbers."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def close(self) -> None:
        """Flush and let go."""


def drop_after(path: Path, step: int) -> None:
    """Remove the records of steps after `step`, which a resumed run is about to repeat."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a killed run left half written
        if record["step"] <= step:
            kept.append(line)
    path.write_text("".join(f"{line}\n" for line in kept))


class JsonLines:
    """One JSON object per line; numbers that JSON cannot hold become null."""

    def __init__(self, path: Path) -> None:
        self.file: TextIO = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one record and hand it to the system at once."""
        clean = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self.file.write(json.dumps({"step": step, **clean}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoard:
    """Event files for TensorBoard; names are grouped by their first word."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one scalar per value."""
        for key, value in values.items():
            group, _, rest = key.partition("_")
            self.writer.add_scalar(f"{group}/{rest}" if rest else key, value, step)

    def close(self) -> None:
        """Flush the events."""
        self.writer.close()


class Tracker:
    """wandb or trackio, which share the calls used here."""

    def __init__(self, package: str, config: RunConfig) -> None:
        try:
            self.client: Any = importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"logging.{package}=true, but {package} is not installed; "
                f"pip install 'svilm-fast[{package}]'"
            ) from error
        self.client.init(
            project=config.logging.project,
            name=config.run.name,
            config=config.model_dump(mode="json"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one record."""
        self.client.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run on the tracker's side."""
        self.client.finish()


class MetricsLog:
    """Sends every record to all sinks; holds none on ranks other than 0."""

    def __init__(self, config: RunConfig, files: RunFiles, *, first: bool, start_step: int) -> None:
        self.sinks: list[Sink] = []
        if not first:
            return
        drop_after(files.metrics, start_step)
        self.sinks.append(JsonLines(files.metrics))
        if config.logging.tensorboard:
            self.sinks.append(
                TensorBoard(files.tensorboard, start_step + 1 if start_step else None)
            )
        for package in ("wandb", "trackio"):
            if getattr(config.logging, package):
                self.sinks.append(Tracker(package, config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""
        for sink in self.sinks:
            sink.write(step, values)

    def close(self) -> None:
        """Close all sinks."""
        for sink in self.sinks:
            sink.close()
