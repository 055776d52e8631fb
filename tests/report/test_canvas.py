"""Inches become pixels, and text is measured and cut."""

from __future__ import annotations

import numpy as np

from svilm_fast.report.canvas import MARGIN, Canvas, text_width, wrap
from svilm_fast.report.theme import LIGHT, drawing


def test_pictures_and_boxes_stand_where_they_were_put(pixels) -> None:
    with drawing(LIGHT):
        canvas = Canvas(4.0, 2.0, LIGHT)
        canvas.image(1.0, 0.5, 1.0, 1.0, np.full((8, 8, 3), (200, 30, 40), np.uint8))
        canvas.box(3.0, 0.0, 0.5, 2.0, fill="#204060")
        image = pixels(canvas.figure)
    assert image.shape == (200 + 200 * MARGIN, 400 + 200 * MARGIN, 3)
    edge = int(100 * MARGIN)
    assert image[edge + 100, edge + 150].tolist() == [200, 30, 40]
    assert image[edge + 60, edge + 110].tolist() == [200, 30, 40]
    assert image[edge + 40, edge + 150].tolist() == [255, 255, 255]
    assert image[edge + 180, edge + 325].tolist() == [0x20, 0x40, 0x60]
    assert image[edge + 100, edge + 260].tolist() == [255, 255, 255]


def test_text_is_as_wide_as_measured(pixels) -> None:
    text = "a $purple^ star, 100 %"
    with drawing(LIGHT):
        canvas = Canvas(5.0, 0.5, LIGHT)
        canvas.text(0.0, 0.1, text, size=12)
        measured = text_width(text, 12)
        columns = np.flatnonzero((pixels(canvas.figure) < 128).any(axis=(0, 2)))
    drawn = (columns[-1] - columns[0]) / 100
    assert abs(drawn - measured) < 0.06


def test_wrapped_lines_fit_and_keep_the_words() -> None:
    text = "a yellow square enters from the right and then blinks on a dotted background"
    with drawing(LIGHT):
        rows = wrap(text, 2.0, 10, lines=9)
        assert " ".join(rows) == text
        assert len(rows) > 1
        assert all(text_width(row, 10) <= 2.0 for row in rows)
        cut = wrap(text, 2.0, 10, lines=2)
        assert len(cut) == 2
        assert cut[0] == rows[0]
        assert cut[1].endswith("…")
        assert all(text_width(row, 10) <= 2.0 for row in cut)
        assert wrap("Donaudampfschifffahrtsgesellschaft", 0.5, 10)[0].endswith("…")
        assert wrap("short", 2.0, 10) == ["short"]
