"""Acceptance thresholds for a retrieval result, for a command's exit code."""

from __future__ import annotations

from svilm_fast.evaluation.result import RetrievalResult


def check_thresholds(
    result: RetrievalResult,
    *,
    least: float | None = None,
    times_colours: float | None = None,
    at_chance: bool = False,
) -> list[tuple[bool, str]]:
    """Return for every threshold whether it is met, and a line with the figure and the target.

    Args:
        result: of which the text-to-video recall is checked.
        least: R@1 must be at least this percentage.
        times_colours: R@1 must be at least this multiple of the colour-set baseline.
        at_chance: R@10 must lie inside the interval of a matcher that guesses.

    Raises:
        ValueError: `times_colours` for clips without known colours.
    """
    checks = []
    first = result.text_to_video.recall[1]
    if least is not None:
        text = f"text-to-video R@1 {first:.1f} %, target at least {least:.1f} %"
        checks.append((first >= least, text))
    if times_colours is not None:
        if result.colours is None:
            raise ValueError(
                "these clips have no known colours to compare with; leave out --times-colours"
            )
        target = times_colours * result.colours.recall[1]
        text = (
            f"text-to-video R@1 {first:.1f} %, target at least {target:.1f} % "
            f"({times_colours:g} x colour sets only)"
        )
        checks.append((first >= target - 1e-4, text))
    if at_chance:
        interval = next(chance for chance in result.chance if chance.k == 10)
        tenth = result.text_to_video.recall[10]
        text = (
            f"text-to-video R@10 {tenth:.1f} %, target inside {interval.low:.1f} to "
            f"{interval.high:.1f} % (chance, binomial {100 * interval.confidence:.1f} %)"
        )
        checks.append((tenth in interval, text))
    return checks
