"""Writes report.html, one file with all pictures and tables of a run, and the pictures as PNG."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib.figure import Figure

from svilm_fast import __version__
from svilm_fast.core.terminal import printable
from svilm_fast.report.canvas import to_png
from svilm_fast.report.curves import Series
from svilm_fast.report.facts import run_facts
from svilm_fast.report.theme import DARK, LIGHT, Theme, drawing

Draw = Callable[[Theme], Figure]


@dataclass(frozen=True)
class Picture:
    """One figure in both themes; `alt` describes it for readers who cannot see it."""

    name: str
    light: bytes
    dark: bytes
    alt: str

    def data(self, theme: Theme) -> str:
        """The PNG as a data URL."""
        content = self.light if theme is LIGHT else self.dark
        return "data:image/png;base64," + base64.b64encode(content).decode()


@dataclass
class Section:
    """A heading, a paragraph, pictures with subheadings (may be empty), table rows and notes."""

    title: str
    text: str
    pictures: list[tuple[str, Picture]] = field(default_factory=list)
    table: list[tuple[str, list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The heading as an HTML id."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class HeadlineTile:
    """One number at the top of the page."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class PageContent:
    """What a task puts on a page; parameters: elements of the model, None if not known."""

    sections: list[Section]
    tiles: list[HeadlineTile]
    parameters: int | None = None


def write_page(
    out_dir: str | Path,
    content: PageContent,
    *,
    name: str,
    series: Series,
    config: Mapping[str, Any],
    settings: Mapping[str, str],
    environment: Mapping[str, Any],
    extra_facts: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write `report.html` and `pictures/*.png` (light theme) into `out_dir`; return the page.

    name: the heading. The other arguments are those of `run_facts`.
    """
    folder = Path(out_dir)
    page = fill_template(
        "report.html",
        name=name,
        subtitle=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=content.tiles,
        sections=content.sections,
        facts=run_facts(config, settings, environment, series, content.parameters, extra_facts),
        config=yaml.safe_dump(dict(config), sort_keys=False) if config else "",
    )
    write_pictures(content.sections, folder / "pictures")
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def picture(name: str, draw: Draw, alt: str) -> Picture:
    """Draw a figure once in each theme."""
    pngs = {}
    for theme in (LIGHT, DARK):
        with drawing(theme):
            pngs[theme] = to_png(draw(theme))
    return Picture(name, pngs[LIGHT], pngs[DARK], alt)


def fill_template(template: str, package: str = "svilm_fast.report", **values: Any) -> str:
    """Render a template of a package; every value is escaped.

    A template that extends `base.html` needs `name`, `subtitle`, `tiles`, `sections` and `facts`.
    """
    packages = dict.fromkeys([package, "svilm_fast.report"])
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in packages]),
        autoescape=True,
        # Bidirectional overrides in a caption would reorder the page. Markup is no plain str.
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        light=LIGHT, dark=DARK, version=__version__, **values
    )


def write_pictures(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write the pictures of the sections as PNG files in the light theme; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for section in sections:
        for _, drawn in section.pictures:
            path = folder / f"{drawn.name}.png"
            path.write_bytes(drawn.light)
            paths.append(path)
    return paths
