"""The console that tables are printed to."""

from __future__ import annotations

from svilm_fast.core.console import Console


def wide_console(width: int = 200) -> Console:
    """A terminal's own width, or `width` where output is piped: a row stays on one line."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=width)
