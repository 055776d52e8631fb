"""The rich console of the package, which prints names and captions from data literally."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from svilm_fast.core.terminal import printable


class Console(rich.console.Console):
    """A rich console without markup, emoji codes and control characters.

    Use `rich.text.Text`, or the `style` of columns and rows, for styled output.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        # Progress columns and Text objects do not pass through render_str.
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
