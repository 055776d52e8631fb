"""The sections and headline figures of a pre-training run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from svilm_fast.core.text import counted
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.evaluation.embed import VideoTextModel
from svilm_fast.evaluation.pointing import PointingScore, measure_pointing
from svilm_fast.evaluation.protocols import protocol_lines
from svilm_fast.evaluation.result import RetrievalResult, missing_notes, table_rows
from svilm_fast.objectives.base import Metric
from svilm_fast.objectives.config import ObjectivesConfig
from svilm_fast.report import texts
from svilm_fast.report.curves import Series, draw_curves, draw_recall_bars
from svilm_fast.report.facts import steady_median
from svilm_fast.report.groups import draw_groups
from svilm_fast.report.page import HeadlineTile, Section, picture
from svilm_fast.report.probe import ClipProbe, spread_clips
from svilm_fast.report.retrieval import choose_queries, draw_retrieval_strip, query_text
from svilm_fast.report.temporal import draw_assignments, draw_similarity

QUERIES = 4  # best and worst queries in the pictures
POINTING_CLIPS = 64
POINTING_BATCH = 8


def pointing_score(model: VideoTextModel, dataset: ClipDataset) -> tuple[PointingScore, int] | None:
    """The pointing score over clips spread over the data set, and the number of these clips."""
    clips = spread_clips(dataset, POINTING_CLIPS)
    batches = (
        dataset.collate(clips[start : start + POINTING_BATCH])
        for start in range(0, len(clips), POINTING_BATCH)
    )
    score = measure_pointing(model, batches)
    return None if score is None else (score, len(clips))


def noun_sharpness(objectives: ObjectivesConfig, series: Series) -> float:
    """Sharpness of the softmax of nouns over groups at the end of a run.

    The last value in the log; without one, the initial value of the configuration.
    """
    logged = {name: float(values[-1]) for name, (_, values) in series.items()}
    found = (
        objective.noun_sharpness(name, logged)
        for name, objective in objectives.active_first().items()
    )
    return next(sharpness for sharpness in found if sharpness is not None)


def retrieval_sections(result: RetrievalResult, queries: int = QUERIES) -> list[Section]:
    """The table with its bars, and film strips of the best and the worst `queries` queries."""
    section = Section(
        "Retrieval",
        texts.retrieval(result),
        [("", picture("recall", lambda theme: draw_recall_bars(result, theme), texts.BARS_ALT))],
        table_rows(result),
        [*missing_notes(result), *protocol_lines(result.facts)],
    )
    if result.embeddings.frames is None:
        return [section]
    best, worst = choose_queries(result, queries)
    strips = Section("Queries", texts.QUERIES)
    for title, name, rows in (
        ("Clearest hits", "queries_best", best),
        ("Hardest queries", "queries_worst", worst),
    ):
        if not rows:
            continue
        alt = "; ".join(
            f"{query_text(result, row)} (rank {result.text_rank[row] + 1:g})" for row in rows
        )
        draw = partial(draw_retrieval_strip, result, rows)
        strips.pictures.append((title, picture(name, draw, alt)))
    return [section, strips]


def curves_section(series: Series, metrics: Mapping[str, Metric], more: str = "") -> Section:
    """Charts of the log over the training steps; metrics: those of the task; more: on them."""
    drawn = picture("curves", lambda theme: draw_curves(series, theme, metrics), texts.CURVES_ALT)
    return Section("Training", texts.CURVES + more, [("", drawn)])


def clip_sections(
    probes: Sequence[ClipProbe],
    objectives: ObjectivesConfig,
    *,
    headed: bool = False,
    pointing: tuple[PointingScore, int] | None = None,
) -> list[Section]:
    """Groups and nouns, temporal assignment, similarity of segments; those that the model has.

    objectives: the run's; notes name the pictures that no objective trained. headed: the assignment
    is the prediction of a temporal head. pointing: the score and the number of its clips.
    """
    sections = []
    reads = objectives.reads()
    if any(probe.groups is not None for probe in probes):
        drawn = picture("groups", lambda theme: draw_groups(probes, theme), texts.GROUPS_ALT)
        text = texts.GROUPS + ("" if pointing is None else texts.pointing(*pointing))
        section = Section("Groups and nouns", text, [("", drawn)])
        if not reads.reads_feature("groups"):
            section.notes.append(texts.NO_GROUNDING)
        for name, objective in objectives.active().items():
            if note := objective.picture_note(name, "groups"):
                section.notes.append(note)
        sections.append(section)
    if any(probe.blended is not None for probe in probes):
        drawn = picture("temporal", lambda theme: draw_assignments(probes, theme), texts.TIME_ALT)
        text = texts.TIME_HEAD if headed else texts.TIME
        section = Section("Temporal grouping", text, [("", drawn)])
        if not reads.reads_feature("segments"):
            section.notes.append(texts.NO_TEMPORAL)
        sections.append(section)
    few = probes[:2]
    drawn = picture("similarity", lambda theme: draw_similarity(few, theme), texts.SIMILARITY_ALT)
    sections.append(Section("Similarity of segments", texts.SIMILARITY, [("", drawn)]))
    return sections


def headline(
    retrieval: RetrievalResult | None, series: Series, pointing: PointingScore | None = None
) -> list[HeadlineTile]:
    """The most important figures, for the tiles at the top of the page."""
    tiles = []
    if retrieval is not None:
        summary = retrieval.text_to_video
        low, high = summary.intervals.get("R@1", (None, None))
        between = "" if low is None else f"95 %: {low:.1f} to {high:.1f}"
        tiles.append(HeadlineTile(f"{summary.recall[1]:.1f} %", "text to video R@1", between))
        median = f"of {counted(summary.gallery_size, 'video')}"
        tiles.append(HeadlineTile(f"{summary.median_rank:g}", "median rank", median))
        if retrieval.colours:
            times = summary.recall[1] / max(retrieval.colours.recall[1], 1e-9)
            note = f"they reach {retrieval.colours.recall[1]:.1f} %"
            tiles.append(HeadlineTile(f"{times:.1f} ×", "R@1 over colour sets", note))
    if pointing is not None:
        chance = f"chance {100 * pointing.chance:.1f} %"
        score = f"{100 * pointing.score:.1f} %"
        tiles.append(HeadlineTile(score, "pointing score of nouns", chance))
    if "loss" in series:
        steps, values = series["loss"]
        after = f"after {counted(int(steps[-1]), 'step')}"
        tiles.append(HeadlineTile(f"{values[-1]:.3f}", "last loss", after))
    clips = steady_median(series, "clips_per_second")
    if clips is not None:
        speed = f"{clips:,.3g}" if clips < 1000 else f"{clips:,.0f}"
        tiles.append(HeadlineTile(speed, "clips per second"))
    return tiles
