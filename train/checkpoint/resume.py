"""Checks a resumed run against its checkpoint, and prints which settings changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svilm_fast.core.errors import CheckpointError
from svilm_fast.core.terminal import print
from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.config.load import read_yaml, task_name_in
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.folder.files import read_json, sha256_of
from svilm_fast.train.ranks.consistency import LOCAL_SETTINGS, flattened

# Settings that do not change the trained weights.
RESULT_KEEPS = (
    *LOCAL_SETTINGS,
    "run.dir",
    "run.name",
    "data.val",
    "data.test",
    "distributed.timeout_seconds",
    "distributed.solo_timeout_seconds",
    "evaluation.",
    "report.",
    "checkpoint.",
    "training.profile.",
    "training.stop_after_steps",
    "training.memory_bytes",
    "weights.",  # a run that resumes does not load them
)


def changes_result(setting: str) -> bool:
    """Return whether another value of this setting changes the trained weights."""
    return not setting.startswith(RESULT_KEEPS)


def changed_settings(saved: dict[str, Any], config: RunConfig) -> list[str]:
    """Return a line for each setting that differs from a saved tree, in the order of the tree."""
    # Runs of versions without tasks were pre-training.
    before = {"task.name": DEFAULT_TASK} | flattened(saved)
    now = flattened(config.model_dump(mode="json"))
    lines = []
    for key in [*now, *(key for key in before if key not in now)]:
        was, is_now = before.get(key, "(not set)"), now.get(key, "(not set)")
        if was != is_now:
            note = "changes the result" if changes_result(key) else "does not change the result"
            lines.append(f"{key}: {was} -> {is_now} ({note})")
    return lines


def check_same_task(files: RunFiles, config: RunConfig) -> None:
    """Raise CheckpointError if the run in the folder has another task."""
    if not files.config.is_file():
        return
    task = task_name_in(read_yaml(files.config))
    if task != config.task.name:
        raise CheckpointError(
            f"{files.root} is a run of task {task!r}, but this run has task {config.task.name!r}: "
            f"set task.name={task}, or load its weights with --weights-from in another run.dir"
        )


def check_same_state(files: RunFiles, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the task's state is not that of the run in the folder."""
    if files.task.is_file() and read_json(files.task) != state:
        raise CheckpointError(
            f"the task's state differs from that of the run ({files.task}), because the training "
            "data or a setting of the block `task` has changed: restore it, or start a new run"
        )


def check_tokenizer(files: RunFiles, source: Path) -> None:
    """Raise CheckpointError if the run's tokenizer differs from its checkpoint's."""
    kept = source / files.tokenizer.name
    if not kept.is_file():  # an older version wrote this checkpoint
        return
    if not files.tokenizer.is_file() or sha256_of(files.tokenizer) != sha256_of(kept):
        raise CheckpointError(
            f"{files.tokenizer} is not the tokenizer that {source} was trained with, so the same "
            f"tokens mean other words; restore it with: cp {kept} {files.tokenizer}"
        )


def check_resume(files: RunFiles, source: Path, config: RunConfig) -> None:
    """Check the tokenizer, and print which settings changed since the checkpoint."""
    check_tokenizer(files, source)
    kept = source / files.config.name
    if not kept.is_file():
        return
    lines = changed_settings(read_yaml(kept), config)
    if lines:
        print(f"settings changed since {source.name}:", flush=True)
        for line in lines:
            print(f"  {line}", flush=True)
