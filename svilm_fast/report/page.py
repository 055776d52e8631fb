"""report.html: one file that holds every picture and table of a run, and the pictures as PNG."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml
from matplotlib.figure import Figure

from svilm_fast import __version__
from svilm_fast.core.terminal import printable
from svilm_fast.core.text import counted
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.evaluation.embed import VideoTextModel
from svilm_fast.evaluation.pointing import PointingScore, has_masks, measure_pointing
from svilm_fast.evaluation.retrieval import RetrievalResult, missing_notes, table_rows
from svilm_fast.report import texts
from svilm_fast.report.canvas import to_png
from svilm_fast.report.curves import Series, draw_curves, draw_recall_bars, read_metrics
from svilm_fast.report.facts import Facts, objectives_of, run_facts, steady_median
from svilm_fast.report.groups import draw_groups
from svilm_fast.report.probe import (
    ClipProbe,
    TemporalHead,
    probe_clips,
    read_clips,
    spread_clips,
)
from svilm_fast.report.retrieval import choose_queries, draw_retrieval_strip, query_text
from svilm_fast.report.temporal import draw_assignments, draw_similarity
from svilm_fast.report.theme import DARK, LIGHT, Theme, drawing

Draw = Callable[[Theme], Figure]

POINTING_CLIPS = 64
POINTING_BATCH = 8


@dataclass(frozen=True)
class Picture:
    """One figure in both themes; `alt` is what it shows, for those who cannot see it."""

    name: str
    light: bytes
    dark: bytes
    alt: str

    def data(self, theme: Theme) -> str:
        """The PNG as a data address."""
        content = self.light if theme is LIGHT else self.dark
        return "data:image/png;base64," + base64.b64encode(content).decode()


@dataclass
class Section:
    """A heading, a paragraph, pictures with their own sub-headings, and perhaps a table."""

    title: str
    text: str
    pictures: list[tuple[str, Picture]] = field(default_factory=list)
    table: list[tuple[str, list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The heading as the name of a place on the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class HeadlineTile:
    """One number at the top of the page."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class PageContent:
    """What a task puts on a page; parameters: elements of the model, where it is known."""

    sections: list[Section]
    tiles: list[HeadlineTile]
    parameters: int | None = None


def build_report(
    out_dir: str | Path,
    *,
    model: VideoTextModel | None = None,
    dataset: ClipDataset | None = None,
    retrieval: RetrievalResult | None = None,
    metrics_path: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    extra_facts: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "run",
    clips: int = 4,
    queries: int = 4,
    beta: float | None = None,
    temperature: float = 0.1,
    temporal_head: TemporalHead | None = None,
    paste_lengths: tuple[float, float] = (0.5, 1.0),
    seed: int = 0,
    untrained: VideoTextModel | None = None,
    device: torch.device | str | None = None,
) -> Path:
    """Write `report.html` and `pictures/*.png` (light) into `out_dir`; returns the page's path.

    Every input is optional and brings its own part: metrics_path (metrics.jsonl) the curves; config
    and environment (config.yaml and env.json as dictionaries) the facts; the others as in
    `run_content`.
    """
    series = series_of(metrics_path)
    content = run_content(
        model=model,
        dataset=dataset,
        retrieval=retrieval,
        series=series,
        config=config,
        clips=clips,
        queries=queries,
        beta=beta,
        temperature=temperature,
        temporal_head=temporal_head,
        paste_lengths=paste_lengths,
        seed=seed,
        untrained=untrained,
        device=device,
    )
    return write_page(
        out_dir,
        content,
        name=name,
        series=series,
        config=config,
        environment=environment,
        extra_facts=extra_facts,
    )


def series_of(metrics_path: str | Path | None) -> Series:
    """The metrics of a run over its steps; empty where there is no log."""
    if metrics_path is None or not Path(metrics_path).is_file():
        return {}
    return read_metrics(metrics_path)


def run_content(
    *,
    model: VideoTextModel | None = None,
    dataset: ClipDataset | None = None,
    retrieval: RetrievalResult | None = None,
    series: Series,
    config: Mapping[str, Any] | None = None,
    clips: int = 4,
    queries: int = 4,
    beta: float | None = None,
    temperature: float = 0.1,
    temporal_head: TemporalHead | None = None,
    paste_lengths: tuple[float, float] = (0.5, 1.0),
    seed: int = 0,
    untrained: VideoTextModel | None = None,
    device: torch.device | str | None = None,
) -> PageContent:
    """Sections and headline figures of a pre-training run.

    Every input is optional and brings its own part: series the curves; retrieval (from
    `evaluate_retrieval` with `keep_frames=4` in its options) table and strips; model (a
    DualEncoder) with dataset (train=False) the pictures of groups, nouns and segments for `clips`
    clips. beta: the grounding softmax's (default: the last in the log, else where the configuration
    starts), temperature: the temporal objective's; temporal_head: its head, where it has one;
    paste_lengths: the shortest and longest share of a clip that cut-and-paste keeps. untrained: the
    model with initial weights.
    """
    sections = []
    pointing: tuple[PointingScore, int] | None = None
    if retrieval is not None:
        sections += retrieval_sections(retrieval, queries)
    if series:
        sections.append(curves_section(series, config))
    if model is not None and dataset is not None:
        batch = read_clips(dataset, clips)
        probes = probe_clips(
            model,
            batch,
            beta=last_beta(series, config) if beta is None else beta,
            temperature=temperature,
            temporal_head=temporal_head,
            paste_lengths=paste_lengths,
            seed=seed,
            untrained=untrained,
            device=device,
        )
        if batch.metadata and has_masks(batch.metadata[0]):
            pointing = pointing_score(model, dataset, device)
        sections += clip_sections(
            probes, headed=temporal_head is not None, config=config, pointing=pointing
        )
    parameters = None
    if isinstance(model, torch.nn.Module):
        parameters = sum(parameter.numel() for parameter in model.parameters())
    return PageContent(
        sections, headline(retrieval, series, None if pointing is None else pointing[0]), parameters
    )


def write_page(
    out_dir: str | Path,
    content: PageContent,
    *,
    name: str = "run",
    series: Series,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    extra_facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write `report.html` and `pictures/*.png` (light) into `out_dir`; returns the page's path."""
    folder = Path(out_dir)
    page = render_page(
        name=name,
        tiles=content.tiles,
        sections=content.sections,
        facts=run_facts(config, environment, series, content.parameters, extra_facts),
        config=yaml.safe_dump(dict(config), sort_keys=False) if config else "",
    )
    write_pictures(content.sections, folder / "pictures")
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def pointing_score(
    model: VideoTextModel, dataset: ClipDataset, device: torch.device | str | None
) -> tuple[PointingScore, int] | None:
    """The pointing score over clips from all over the data set, and how many clips those are."""
    clips = spread_clips(dataset, POINTING_CLIPS)
    batches = (
        dataset.collate(clips[start : start + POINTING_BATCH])
        for start in range(0, len(clips), POINTING_BATCH)
    )
    score = measure_pointing(model, batches, device)
    return None if score is None else (score, len(clips))


def last_beta(series: Series, config: Mapping[str, Any] | None = None) -> float:
    """Sharpness of the grounding softmax at the end of a run.

    Where no log has it: the value that the configuration starts from, or its default.
    """
    logged = {name: float(values[-1]) for name, (_, values) in series.items()}
    found = (
        objective.noun_sharpness(name, logged)
        for name, objective in objectives_of(config).active_first().items()
    )
    return next(sharpness for sharpness in found if sharpness is not None)


def retrieval_sections(result: RetrievalResult, queries: int) -> list[Section]:
    """The table with its bars, and the strips of the best and the worst queries."""
    summary = result.text_to_video
    section = Section(
        "Retrieval",
        texts.retrieval(result),
        [("", picture("recall", lambda theme: draw_recall_bars(result, theme), texts.BARS_ALT))],
        table_rows(result),
        missing_notes(result),
    )
    if result.embeddings.frames is None:
        return [section]
    best, worst = choose_queries(result, queries)
    strips = Section("Queries", texts.QUERIES)
    for title, name, rows in (
        ("Clearest hits", "queries_best", best),
        ("Hardest queries", "queries_worst", worst),
    ):
        if rows:
            strips.pictures.append((title, _strip(name, result, rows)))
    return [section, strips] if summary.queries else [section]


def curves_section(series: Series, config: Mapping[str, Any] | None = None) -> Section:
    """Everything the log holds over the steps."""
    metrics = objectives_of(config).metrics()
    drawn = picture("curves", lambda theme: draw_curves(series, theme, metrics), texts.CURVES_ALT)
    return Section("Training", texts.CURVES, [("", drawn)])


def clip_sections(
    probes: Sequence[ClipProbe],
    *,
    headed: bool = False,
    config: Mapping[str, Any] | None = None,
    pointing: tuple[PointingScore, int] | None = None,
) -> list[Section]:
    """Groups and nouns, temporal assignment, similarity of segments; what the model has of them.

    config: the run's; a note says what of these pictures its objectives did not train. pointing:
    the pointing score and the number of its clips, where the truth is known.
    """
    sections = []
    objectives = objectives_of(config)
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
    if any(probe.assignment is not None for probe in probes):
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
    """The numbers that a reader looks for first."""
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
        tiles.append(
            HeadlineTile(f"{100 * pointing.score:.1f} %", "pointing score of nouns", chance)
        )
    if "loss" in series:
        steps, values = series["loss"]
        tiles.append(
            HeadlineTile(
                f"{values[-1]:.3f}", "last loss", f"after {counted(int(steps[-1]), 'step')}"
            )
        )
    clips = steady_median(series, "clips_per_second")
    if clips is not None:
        tiles.append(
            HeadlineTile(f"{clips:,.3g}" if clips < 1000 else f"{clips:,.0f}", "clips per second")
        )
    return tiles


def picture(name: str, draw: Draw, alt: str) -> Picture:
    """Draw a figure once in each theme."""
    pngs = {}
    for theme in (LIGHT, DARK):
        with drawing(theme):
            pngs[theme] = to_png(draw(theme))
    return Picture(name, pngs[LIGHT], pngs[DARK], alt)


def render_page(
    *,
    name: str,
    tiles: Sequence[HeadlineTile],
    sections: Sequence[Section],
    facts: Facts,
    config: str = "",
) -> str:
    """The page as text; every value is escaped."""
    return fill_template(
        "report.html",
        name=name,
        subtitle=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=tiles,
        sections=sections,
        facts=facts,
        config=config,
    )


def fill_template(template: str, package: str = "svilm_fast.report", **values: Any) -> str:
    """The named template of a package as text; every value is escaped.

    It may extend `base.html`, which needs `name`, `subtitle`, `tiles`, `sections` and `facts`.
    """
    packages = dict.fromkeys([package, "svilm_fast.report"])
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in packages]),
        autoescape=True,
        # Bidirectional overrides in a caption reorder the page; markup of ours has another type.
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        light=LIGHT, dark=DARK, version=__version__, **values
    )


def write_pictures(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Every picture of the sections as a PNG file in the light theme."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for section in sections:
        for _, drawn in section.pictures:
            path = folder / f"{drawn.name}.png"
            path.write_bytes(drawn.light)
            paths.append(path)
    return paths


def _strip(name: str, result: RetrievalResult, rows: Sequence[int]) -> Picture:
    described = [f"{query_text(result, row)} (rank {result.text_rank[row] + 1:g})" for row in rows]
    return picture(
        name, lambda theme: draw_retrieval_strip(result, rows, theme), "; ".join(described)
    )
