"""What a person sees of a run: on a terminal a bar with all figures below it, else text lines."""

import io
import re
from math import nan

import pytest
from rich.console import Console

from svilm_fast.objectives.config import ObjectivesConfig
from svilm_fast.train.run.progress import (
    SHARES,
    SHORT_NAMES,
    Display,
    figure_lines,
    readable,
    short_names,
)

METRICS = ObjectivesConfig().metrics()
VALUES = dict.fromkeys(short_names(METRICS), 0.123) | {
    "peak_memory_bytes": 3.5 * 2**30,
    "straggler_rank": 3.0,
    "straggler_ratio": 1.6,
    "straggler_seconds": 0.9,
    "seconds_per_step": 1.0,
}


def shown(width: int, values: dict[str, float]) -> list[str]:
    """The rows of the last picture on a terminal of this width."""
    written = io.StringIO()
    console = Console(file=written, width=width, height=50, force_terminal=True, color_system=None)
    display = Display(
        "on",
        first=True,
        total_steps=640,
        start_step=0,
        on_gpu=True,
        metrics=METRICS,
        console=console,
    )
    display.step(64)
    display.record(64, values)
    written.truncate(0)
    written.seek(0)
    display.close()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", written.getvalue()).splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_bar_keeps_its_row_and_every_figure_is_whole(width: int) -> None:
    bar, *figures = [row for row in shown(width, VALUES) if row.strip()]
    assert re.match(r"step\s+64/640\s+━+\S*\s+\d:\d\d:\d\d left", bar)
    assert all(len(row.rstrip()) <= width for row in figures)
    for name, short in short_names(METRICS).items():
        number = "3.50 GiB" if name == "peak_memory_bytes" else r"[\d.]+(e-\d+)?%?"
        assert any(re.search(rf"(^|  ){re.escape(short)} {number}(  |\s*$)", r) for r in figures), (
            short
        )
    assert any("slowest rank 3 (1.60x the mean)" in row for row in figures)


def test_before_the_first_record_there_is_the_bar_alone() -> None:
    assert len([row for row in shown(80, {}) if row.strip()]) == 1


def test_without_a_terminal_a_record_is_one_line(capsys) -> None:
    display = Display(
        "off", first=True, total_steps=10, start_step=0, on_gpu=False, metrics=METRICS
    )
    display.step(5)
    display.record(5, {"loss": 1.5, "accuracy_v2t": 0.25})
    display.say("saved")
    display.close()
    assert capsys.readouterr().out == "step 5/10 | loss 1.5 | acc v2t 25%\nsaved\n"


def test_step_lines_fit_into_120_columns(capsys) -> None:
    """All figures, with numbers as large as a diverging run has them."""
    values = dict.fromkeys(VALUES, -1.2345678e300) | {"straggler_ratio": 12345.678}
    values |= {"straggler_rank": 1023.0, "straggler_seconds": 1e9, "seconds_per_step": 1e9}
    values |= dict.fromkeys(SHARES, 1.0) | {"peak_memory_bytes": 2.0**50}
    display = Display("off", first=True, total_steps=10**7, start_step=0, on_gpu=True)
    display.record(9_999_999, values)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith("step 9999999/10000000 | loss -1.23e+300 | ")
    assert all(line.startswith("    ") for line in lines[1:])
    together = " | ".join(line.strip() for line in lines)
    for short in SHORT_NAMES.values():
        assert f"| {short} " in together
    assert "slowest rank 1023 (12345.68x the mean)" in together


def test_a_name_longer_than_a_line_is_cut_and_keeps_its_value() -> None:
    first, second, third = figure_lines("step 1/2", f"loss 1.5 | {'x' * 200} 0.25 | lr 1e-3").split(
        "\n"
    )
    assert (first, third) == ("step 1/2 | loss 1.5", "    lr 1e-3")
    assert len(second) == 120
    assert second.endswith("x… 0.25")


def test_numbers_stay_short() -> None:
    shown = [readable("loss", value) for value in (0.12345, 999.4, 12345.6, 1.5e7, -2e300, nan)]
    assert shown == ["0.123", "999", "12346", "1.5e+07", "-2e+300", "nan"]


def test_other_ranks_are_quiet(capsys) -> None:
    display = Display(
        "on", first=False, total_steps=10, start_step=0, on_gpu=False, metrics=METRICS
    )
    display.record(5, {"loss": 1.5})
    display.say("saved")
    assert capsys.readouterr() == ("", "")
