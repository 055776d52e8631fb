"""Writes the report of a run: for `svilm report`, and at the end of a training run."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print, print_traceback
from svilm_fast.tasks.base import ReportRequest
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.folder.files import read_json
from svilm_fast.train.folder.lock import locked
from svilm_fast.train.folder.ownership import check_not_foreign, placed
from svilm_fast.train.run.loaded_run import LoadedRun, load_run
from svilm_fast.train.run_app import DEBUG, one_line

log = logging.getLogger(__name__)


def write_report(
    run: LoadedRun,
    split: str | None,
    device: torch.device,
    *,
    max_clips: int | None = None,
    clips: int = 4,
    progress: bool | None = None,
) -> Path:
    """Write report.html and its pictures into the run's directory; returns the page's path.

    run: a loaded run whose model is on `device`. split: evaluated and drawn; None shows curves and
    facts only. max_clips: number of clips to evaluate; None: all. clips: number of clips drawn in
    detail. progress: show a bar (default: on a terminal). Raises UserError or DataError if the
    split cannot be opened, and UserError if a file would replace one that the run did not write.
    """
    from svilm_fast.report import page
    from svilm_fast.report.curves import read_metrics

    config, files = run.config, run.files
    check_not_foreign(files, [files.report])
    environment = _environment(files)
    series = read_metrics(files.metrics) if files.metrics.is_file() else {}
    tree = config.model_dump(mode="json")
    request = ReportRequest(
        model=run.model,
        tokenizer=run.tokenizer,
        device=device,
        split=split,
        series=series,
        max_clips=max_clips,
        clips=clips,
        progress=progress,
    )
    content = run.task.report(request)
    with placed(files, files.root) as drafts:
        page.write_page(
            drafts,
            content,
            name=config.run.name,
            series=series,
            config=tree,
            settings=run.task.facts(),
            environment=environment,
            extra_facts={"Weights": {"read": run.weights.value, "step": run.step}},
        )
    return files.report


def _environment(files: RunFiles) -> dict[str, Any]:
    try:
        content = read_json(files.environment)
    except ValueError as error:
        raise UserError(f"{error}; resume the run with --resume to write it again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{files.environment} is damaged (not a JSON object); resume the run with --resume to "
            "write it again"
        )
    return content


def report_at_end(config: RunConfig, device: torch.device) -> Path | None:
    """Write the report of the run that has just ended, on its evaluation split.

    The training is saved already, so an error becomes a warning that names its cause, and the
    function returns None.
    """
    if not config.checkpoint.portable_at_end:
        log.warning(
            "no report: it needs the portable checkpoint, and checkpoint.portable_at_end is false"
        )
        return None
    split: str | None = config.evaluation.split
    if getattr(config.data, config.evaluation.split) is None:
        log.warning("the report will show no clips: data.%s is not set", split)
        split = None
    try:
        run = load_run(config.run.dir, device=device)
        with locked(run.files.root):
            path = write_report(
                run, split, device, max_clips=config.evaluation.max_clips, progress=False
            )
    except Exception as error:
        if os.environ.get(DEBUG) == "1":
            print_traceback(error)
        log.warning(
            "the run is saved, but its report could not be written: %s; try again with "
            "`svilm report --run %s`",
            one_line(error),
            config.run.dir,
        )
        return None
    print(f"wrote {path}", flush=True)
    return path
