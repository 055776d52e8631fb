"""The page of a task that draws nothing of its own: every evaluator's figures, and the curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svilm_fast.report.page import PageContent, Section, Tile, curves_section
from svilm_fast.tasks.base import EvaluationRequest

if TYPE_CHECKING:
    from svilm_fast.tasks.base import ReportRequest, Task

TEXT = "What the task's evaluators measured on the clips of the {split} split."


def plain_page(task: Task, request: ReportRequest) -> PageContent:
    """Evaluate the model on the split that is asked for, and draw the curves."""
    sections, tiles = [], []
    if request.split is not None:
        wanted = EvaluationRequest(request.device, progress=request.progress)
        found: dict[str, float] = {}
        for evaluator in task.evaluators(request.tokenizer, request.split, request.max_clips):
            found |= evaluator.run(request.model, wanted).metrics()
        lines = [f"{name}: {value:.4g}" for name, value in found.items()]
        sections.append(Section("Evaluation", TEXT.format(split=request.split), notes=lines))
        tiles = [Tile(f"{value:.4g}", name) for name, value in list(found.items())[:3]]
    if request.series:
        sections.append(curves_section(request.series))
    parameters = sum(parameter.numel() for parameter in request.model.parameters())
    return PageContent(sections, tiles, parameters)
