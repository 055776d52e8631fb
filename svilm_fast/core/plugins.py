"""Entry points of installed packages: the only way in which a name selects code to import."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.messages import single_line

# Installed packages announce tasks and objectives in these groups (docs/adding-a-task.md,
# docs/adding-an-objective.md).
TASKS_GROUP, OBJECTIVES_GROUP = "svilm_fast.tasks", "svilm_fast.objectives"


def plugin_names(group: str) -> list[str]:
    """Return the sorted names that installed packages announce in an entry-point group."""
    return sorted({point.name for point in entry_points(group=group)})


def plugin_packages() -> set[str]:
    """Return the top-level packages of all plug-ins."""
    groups = (TASKS_GROUP, OBJECTIVES_GROUP)
    return {
        point.module.partition(".")[0] for group in groups for point in entry_points(group=group)
    }


def find_plugin(group: str, name: str, setting: str) -> EntryPoint | None:
    """Return the entry point of a name, or None. Nothing is imported.

    setting: where the name comes from; errors start with it. Raises ConfigError where several
    packages announce the name for different objects.
    """
    by_target = {point.value: point for point in entry_points(group=group, name=name)}
    if len(by_target) > 1:
        raise ConfigError(
            f"{setting}: {name!r} is announced by {len(by_target)} installed packages "
            f"({', '.join(sorted(by_target))}): uninstall all but one"
        )
    return next(iter(by_target.values()), None)


def load_plugin(point: EntryPoint, setting: str) -> Any:
    """Import what an entry point names. Raises ConfigError where its package cannot be imported."""
    try:
        return point.load()
    except Exception as error:
        raise ConfigError(
            f"{setting}: the plug-in {point.name!r} ({point.value}) cannot be imported: "
            f"{type(error).__name__}: {single_line(error)}"
        ) from error
