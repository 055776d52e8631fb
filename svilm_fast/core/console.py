"""The rich console of the package: names and captions from data are shown as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from svilm_fast.core.terminal import printable


class Console(rich.console.Console):
    """A rich console that takes texts literally: no markup, no emoji codes, no control characters.

    Styles come from `rich.text.Text` and from the `style` of columns and rows.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        # Texts that did not come through render_str (progress columns, Text objects).
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
