"""What a run promised to reach: judged on its result, for a command's exit status."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.evaluation.retrieval import RetrievalResult


@dataclass(frozen=True)
class Demands:
    """Text-to-video recall that must be reached, or must not differ from chance.

    least: percent that R@1 must reach. times_colours: how often R@1 must be that of the matcher
    which sees only colours. at_chance: R@10 must lie inside the interval of a matcher that guesses.
    """

    least: float | None = None
    times_colours: float | None = None
    at_chance: bool = False


def judged(result: RetrievalResult, demands: Demands) -> list[tuple[bool, str]]:
    """For every demand whether it is met, and a line with the figure and the target.

    Raises `ValueError` where colours are demanded of clips without known colours.
    """
    verdicts = []
    first = result.text_to_video.recall[1]
    if demands.least is not None:
        text = f"text-to-video R@1 {first:.1f} %, target at least {demands.least:.1f} %"
        verdicts.append((first >= demands.least, text))
    if demands.times_colours is not None:
        if result.colours is None:
            raise ValueError(
                "these clips have no known colours to compare with; leave out --times-colours"
            )
        target = demands.times_colours * result.colours.recall[1]
        text = (
            f"text-to-video R@1 {first:.1f} %, target at least {target:.1f} % "
            f"({demands.times_colours:g} x colour sets only)"
        )
        verdicts.append((first >= target - 1e-4, text))
    if demands.at_chance:
        interval = next(chance for chance in result.chance if chance.k == 10)
        tenth = result.text_to_video.recall[10]
        text = (
            f"text-to-video R@10 {tenth:.1f} %, target inside {interval.low:.1f} to "
            f"{interval.high:.1f} % (chance, binomial {100 * interval.confidence:.1f} %)"
        )
        verdicts.append((tenth in interval, text))
    return verdicts
