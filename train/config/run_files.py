"""The files of a run folder."""

from __future__ import annotations

from pathlib import Path

LOCK_FILE = "run.lock"
PICTURES = "pictures"


class RunFiles:
    """The layout of the run folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / "run.json"  # marks the folder as a run's
        self.owned = root / "run.files"  # lists the files that the run's commands wrote
        self.config = root / "config.yaml"  # the resolved settings
        self.deepspeed_config = root / "ds_config.json"  # the generated dictionary
        self.environment = root / "env.json"  # versions and machine
        self.metrics = root / "metrics.jsonl"  # one record on each line
        self.tracking = root / "tracking.json"  # identity of the run for wandb and trackio
        self.third_party = root / "third_party.log"  # logs and warnings of other packages
        self.tokenizer = root / "tokenizer.json"
        self.task = root / "task.json"  # the state of the task, if it has one
        self.report = root / "report.html"
        self.tensorboard = root / "tensorboard"
        self.checkpoints = root / "checkpoints"  # of DeepSpeed, each with a manifest
        self.portable = root / "portable"  # the portable checkpoint
        self.evaluation = root / "evaluation"  # tables of the evaluations
        self.profile = root / "profile"  # Chrome traces

    def names(self) -> list[str]:
        """Return the names in the folder that a run writes."""
        return [PICTURES, *(path.name for path in vars(self).values() if path != self.root)]

    @property
    def copied(self) -> list[Path]:
        """The files besides weights that a checkpoint needs: settings, tokenizer, task's state."""
        return [path for path in (self.config, self.tokenizer, self.task) if path.is_file()]
