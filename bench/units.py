"""Parses numbers in options."""

from __future__ import annotations

import argparse
import math
import re

MOST = 1e6


def limited_time(text: str) -> float:
    """Seconds from 0 to 1e6; raises the error that argparse shows for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1e6")
    return value


def percent(text: str) -> float:
    """'5%' or '0.5 %' as a fraction.

    Raises ValueError for a negative number, and for one without %, which might be a fraction.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*%\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a percentage: write one like 5% or 0.5%")
    return float(match[1]) / 100
