"""The files of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOCK_FILE = "run.lock"


@dataclass(frozen=True)
class RunFiles:
    """The layout of a run directory."""

    root: Path

    def names(self) -> list[str]:
        """Return the names in the folder that a run writes."""
        files = [self.manifest, self.owned, self.config, self.deepspeed_config, self.environment]
        files += [self.metrics, self.tracking, self.third_party, self.tokenizer, self.report]
        folders = [self.tensorboard, self.checkpoints, self.portable, self.evaluation, self.profile]
        return ["pictures", *(path.name for path in (*files, *folders))]

    @property
    def manifest(self) -> Path:
        """What says that the folder is a run's."""
        return self.root / "run.json"

    @property
    def owned(self) -> Path:
        """The list of the files that the run's commands wrote."""
        return self.root / "run.files"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def copied(self) -> list[Path]:
        """What a checkpoint needs beside weights to be read: configuration and tokenizer."""
        return [path for path in (self.config, self.tokenizer) if path.is_file()]

    @property
    def deepspeed_config(self) -> Path:
        """The generated dictionary of DeepSpeed."""
        return self.root / "ds_config.json"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.root / "env.json"

    @property
    def metrics(self) -> Path:
        """One JSON record per line."""
        return self.root / "metrics.jsonl"

    @property
    def third_party(self) -> Path:
        """What other packages logged, their warnings among it."""
        return self.root / "third_party.log"

    @property
    def tracking(self) -> Path:
        """What wandb and trackio know this run by."""
        return self.root / "tracking.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """DeepSpeed checkpoints, each with a manifest."""
        return self.root / "checkpoints"

    @property
    def portable(self) -> Path:
        """The portable checkpoint."""
        return self.root / "portable"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder or file."""
        return self.root / "tokenizer.json"

    @property
    def evaluation(self) -> Path:
        """Tables of the evaluations."""
        return self.root / "evaluation"

    @property
    def profile(self) -> Path:
        """Chrome traces."""
        return self.root / "profile"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report.html"
