"""A torch.profiler window around some steps, written as a Chrome trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from svilm_fast.train.config.schema import ProfileConfig
from svilm_fast.train.engine.engine import StepResult
from svilm_fast.train.run.hooks import Hook


class StepProfiler(Hook):
    """Records the configured steps, counted from the first step of this process.

    written: called with the path of the trace.
    """

    def __init__(
        self, config: ProfileConfig, folder: Path, written: Callable[[Path], None]
    ) -> None:
        self.config, self.folder, self.written = config, folder, written
        self.taken = 0
        self.profile: torch.profiler.profile | None = None

    def before_step(self, step: int, batch: Any) -> None:
        """Start recording when the window begins."""
        if self.taken == self.config.start_step:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profile = torch.profiler.profile(activities=activities)
            self.profile.start()

    def after_step(self, step: int, result: StepResult) -> None:
        """Count the step; write the trace when the window ends."""
        self.taken += 1
        if self.taken >= self.config.start_step + self.config.steps:
            self.after_run()

    def after_run(self) -> None:
        """Stop and write what was recorded so far."""
        if self.profile is None:
            return
        self.profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"trace_from_step_{self.config.start_step}.json"
        self.profile.export_chrome_trace(str(path))
        self.profile = None
        self.written(path)
