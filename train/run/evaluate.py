"""Runs the evaluators of a task and names their result files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.tasks.base import EvaluationRequest, EvaluationResult, Evaluator
from svilm_fast.train.config.options import Weights
from svilm_fast.train.folder.ownership import check_not_foreign, placed
from svilm_fast.train.run.loaded_run import LoadedRun

RESULT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,99}")
KINDS = ("json", "txt")


def check_result_name(name: str) -> None:
    """Raise UserError for a name that could leave the run's evaluation folder."""
    if not RESULT_NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r} cannot name files in evaluation/; use up to 100 letters, digits and "
            "_ . + = @ -, and begin with a letter, a digit or _"
        )


def result_name(text: str) -> str:
    """Return `text` with `_` in place of characters that are not allowed in a result name."""
    return re.sub(r"[^A-Za-z0-9_.+=@-]", "_", text)[:100]


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the files that an evaluation result writes into `folder`."""
    return [folder / f"{name}.{kind}" for kind in KINDS]


def evaluate_run(
    run: LoadedRun,
    split: str,
    device: torch.device,
    *,
    max_clips: int | None = None,
) -> tuple[dict[str, float], list[str]]:
    """Run every evaluator of the run's task on a split, and write `<split>_<evaluator>` files.

    run: a loaded run whose model is on `device`. Returns the metrics by full name, and the lines of
    the results that have a protocol (`lines`). Raises UserError if the split has no data, or if a
    result would replace a file that the run did not write.
    """
    folder = run.files.evaluation
    evaluators = run.task.evaluators(run.tokenizer, split, max_clips)
    check_names(evaluators)
    names = [result_name(f"{split}_{evaluator.name}") for evaluator in evaluators]
    check_not_foreign(run.files, [path for name in names for path in files_of(folder, name)])
    request = EvaluationRequest(device)
    found: dict[str, float] = {}
    protocol: list[str] = []
    for evaluator, name in zip(evaluators, names, strict=True):
        result = evaluator.run(run.model, request)
        with placed(run.files, folder) as drafts:
            write_result(result, drafts, name, step=run.step, weights=run.weights)
        found |= checked_metrics(evaluator, result)
        lines = getattr(result, "lines", None)
        protocol += lines() if callable(lines) else []
    return found, protocol


def write_result(
    result: EvaluationResult, folder: Path, name: str, *, step: int, weights: Weights
) -> None:
    """Write a result's files; its JSON says in `extra` of which step and weights it is."""
    result.write(folder, name)
    path = folder / f"{name}.json"
    if not path.is_file():  # a task of somebody else may write other files
        return
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    if isinstance(content, dict) and isinstance(content.setdefault("extra", {}), dict):
        content["extra"] |= {"step": step, "weights": weights.value}
        indent = 1 if text.count("\n") > 1 else None
        path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", "utf-8")


def check_names(evaluators: Sequence[Evaluator]) -> None:
    """Raise ValueError if two evaluators share a name or would write the same files."""
    for what in ("name", "file_name"):
        names = [result_name(getattr(evaluator, what)) for evaluator in evaluators]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two evaluators of the task have the {what} {twice[0]!r}: each needs its own"
            )


def checked_metrics(evaluator: Evaluator, result: EvaluationResult) -> dict[str, float]:
    """Return a result's metrics. Raises ValueError if a prefix is not the evaluator's name."""
    metrics = result.metrics()
    wrong = [name for name in metrics if name.rpartition("/")[0] != evaluator.name]
    if wrong:
        raise ValueError(
            f"evaluator {evaluator.name!r} returned the metric {wrong[0]!r}: call it "
            f"'{evaluator.name}/{wrong[0].rpartition('/')[2]}'"
        )
    return metrics
