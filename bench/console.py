"""The console for tables."""

from __future__ import annotations

from svilm_fast.core.console import Console


def wide_console(width: int = 200) -> Console:
    """A console of the terminal's width, or of `width` if output is piped, to keep rows whole."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=width)
