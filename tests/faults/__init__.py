"""Fault injection into whole runs: rows of faults, each tried many times. See docs/faults.md.

The modules imported here register the rows.
"""

from tests.faults import (
    rows_data,
    rows_hostile,
    rows_process,
    rows_resume,
    rows_soak,
    rows_storage,
    rows_training,
)
from tests.faults.registry import ROWS as ALL_ROWS

__all__ = [
    "ALL_ROWS",
    "rows_data",
    "rows_hostile",
    "rows_process",
    "rows_resume",
    "rows_soak",
    "rows_storage",
    "rows_training",
]
