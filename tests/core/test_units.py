"""Numbers formatted for people."""

import pytest

from svilm_fast.core.units import (
    bytes_text,
    count_text,
    percent_text,
    rate_text,
    ratio_text,
    time_text,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (time_text(0.0331), "33.1 µs"),
        (time_text(12.345), "12.3 ms"),
        (time_text(12345.0), "12.3 s"),
        (bytes_text(512), "512 B"),
        (bytes_text(24.1 * 2**30), "24.1 GiB"),
        (rate_text(7.9e14, "FLOP/s"), "790 TFLOP/s"),
        (rate_text(0.5, "B/s"), "0.5 B/s"),
        (percent_text(0.1234), "12.3%"),
        (count_text(22_589.0), "22,600"),
        (count_text(3.14159), "3.14"),
        (count_text(0.0), "0"),
        (ratio_text(1.42), "1.4×"),
        (ratio_text(141.7), "142×"),
    ],
)
def test_numbers_are_written_for_people(text, expected):
    assert text == expected
