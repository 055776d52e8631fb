"""A torch.profiler window around some steps, written as a Chrome trace."""

from __future__ import annotations

from pathlib import Path

import torch

from svilm_fast.train.config.schema import ProfileConfig


class StepProfiler:
    """Records the configured steps on rank 0; counts from the first step of this process."""

    def __init__(self, config: ProfileConfig, folder: Path, *, enabled: bool) -> None:
        self.config = config
        self.folder = folder
        self.enabled = enabled and config.steps > 0
        self.taken = 0
        self.profile: torch.profiler.profile | None = None

    def before_step(self) -> None:
        """Start recording when the window begins."""
        if self.enabled and self.taken == self.config.start_step:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profile = torch.profiler.profile(activities=activities)
            self.profile.start()

    def after_step(self) -> Path | None:
        """Count the step; return the trace's path when the window has just ended."""
        self.taken += 1
        if self.profile is None or self.taken < self.config.start_step + self.config.steps:
            return None
        return self.close()

    def close(self) -> Path | None:
        """Stop and write what was recorded so far."""
        if self.profile is None:
            return None
        self.profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"trace_from_step_{self.config.start_step}.json"
        self.profile.export_chrome_trace(str(path))
        self.profile = None
        return path
