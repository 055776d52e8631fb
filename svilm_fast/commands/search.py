"""`svilm search`: moments of the videos of a folder that match a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from svilm_fast.commands.options import Device, WeightsKind
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print

SHOWN_SKIPS = 10
PIPE_WIDTH = 160


def search(
    text: Annotated[str, typer.Argument(help="what to look for, in words")],
    videos: Annotated[Path, typer.Option(help="folder of video files, with its subfolders")],
    model: Annotated[Path, typer.Option(help="folder of `svilm export`, or of a run")],
    top: Annotated[int, typer.Option(min=1, max=1000, help="number of moments")] = 5,
    html: Annotated[Path | None, typer.Option(help="write the moments as a page")] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="write the moments as an MP4 with the regions drawn")
    ] = None,
    noun: Annotated[
        list[str] | None,
        typer.Option(help="ground this noun, instead of those of the text; may be repeated"),
    ] = None,
    window: Annotated[
        float, typer.Option(min=0.1, max=86400, help="length of a moment, seconds")
    ] = 5.0,
    stride: Annotated[
        float | None,
        typer.Option(min=0.05, max=86400, help="seconds between windows; default: window / 2"),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="file of the index; default: in the user's cache")
    ] = None,
    rebuild: Annotated[bool, typer.Option(help="read every video again")] = False,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Find moments in a folder of videos by words, with the region each noun attends to.

    Videos are embedded once; later searches read only new and changed files.
    """
    from svilm_fast.core.text import counted
    from svilm_fast.search.index import update_index
    from svilm_fast.search.models import open_model
    from svilm_fast.search.overlay import check_overlay, write_overlay
    from svilm_fast.search.page import check_page, write_search_page
    from svilm_fast.search.ranking import best_moments
    from svilm_fast.search.regions import nouns_of, show_moment
    from svilm_fast.train.ranks.process_group import choose_device

    if not text.strip():
        raise UserError('the text to look for is empty; give words: svilm search "a dog" ...')
    if html is not None:
        check_page(html)
    if overlay is not None:
        check_overlay(overlay, videos)
    opened = open_model(model, device=choose_device(device, 0), weights=weights)
    nouns = nouns_of(text, opened, noun or ())
    with _Bar() as progress:
        found, changes = update_index(
            videos,
            opened,
            index,
            window=window,
            stride=window / 2 if stride is None else stride,
            rebuild=rebuild,
            progress=progress,
        )
    moments = best_moments(found, opened.embed_text(text)[0], top)
    shown = [show_moment(opened, moment, nouns) for moment in moments]
    _print_table(text, shown)
    print(
        f"{counted(changes.added, 'file')} read, {changes.unchanged} unchanged, "
        f"{changes.removed} gone"
    )
    for place, (name, reason) in enumerate(found.skipped.items()):
        if place == SHOWN_SKIPS:
            print(f"  and {len(found.skipped) - SHOWN_SKIPS} more skipped")
            break
        print(f"  skipped {name}: {reason}")
    for each in shown:
        if each.problem:
            print(f"  {each.moment.name}: {each.problem}")
    if not nouns:
        why = "the text has no noun" if opened.can_ground else "this model cannot ground nouns"
        print(f"no regions: {why}")
    if html is not None:
        write_search_page(html, text, shown, found, opened.settings, model.resolve().name)
        print(f"wrote {html}")
    if overlay is not None and shown:
        left_out = write_overlay(overlay, shown, opened.settings)
        print(f"wrote {overlay}")
        for name, reason in left_out.items():
            print(f"  not in it: {name}: {reason}")
    if not shown:
        raise UserError(f"no file in {videos} can be searched; the reasons are above")


def _print_table(text: str, shown: list[Any]) -> None:
    from rich.table import Table

    from svilm_fast.core.console import Console
    from svilm_fast.search.page import moment_span
    from svilm_fast.search.regions import place_of

    if not shown:
        return
    nouns = max((each.nouns for each in shown), key=len)  # a moment may have none
    table = Table("", "video", "time", "score", *nouns, title=f"“{text}”", title_justify="left")
    table.columns[1].overflow = "fold"
    for rank, each in enumerate(shown, 1):
        moment, grounded = each.moment, each.grounded
        places = (
            [
                f"{place_of(mask.numpy())}, {float(attention.max()):.0%}"
                for mask, attention in zip(grounded.masks, grounded.attention, strict=True)
            ]
            if grounded is not None
            else []
        )
        span = moment_span(moment.start, moment.end)
        table.add_row(str(rank), moment.name, span, f"{moment.score:.3f}", *places)
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    console.print(table)


class _Bar:
    """Shows a bar on a terminal; a context manager that gives the function to call."""

    def __enter__(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from svilm_fast.core.console import Console

        self.bar = Progress(
            TextColumn("indexing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=None)
        return self.show

    def show(self, name: str, done: int, total: int) -> None:
        self.bar.update(self.task, description=name, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
