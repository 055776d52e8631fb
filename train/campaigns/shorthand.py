"""Short forms of a table's file: runs like another, runs that follow every row, shared rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from svilm_fast.core.messages import suggestion
from svilm_fast.core.nested import merge

ROW = "row"  # the run of a row, in `each` and in `read`


def expanded(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a table's file with every run and every row written out.

    - `like: NAME` in a run: what NAME gives holds here too. Its `set` and `command` come first.
    - `rows: {LABEL: RUN}` beside `runs` are the rows of all sections that have no `rows`. A section
      may give a list of these labels instead.
    - `each: {NAME: run}` are runs that follow the run of a row, called `RUN_NAME`. In
      `weights_from`, `start_from` or `after`, `row` is the run of the row, and a name of `each` the
      run of that name in the same row. Runs that no section reads are left out.
    - `read: [NAME, ...]` in a section are the runs that its rows join: `row`, or names of `each`.
    - `compare: LABEL` beside `rows` is the `compare` of the sections with this row that have none.

    Raises ValueError for a name that does not exist, with the place.
    """
    rest = {key: value for key, value in content.items() if key not in ("rows", "each", "compare")}
    rows, each = _mapping(content, "rows"), _mapping(content, "each")
    if ROW in each:
        raise ValueError(f"each.{ROW}: {ROW!r} is the run of the row; choose another name")
    runs = _mapping(content, "runs")
    for label, run in rows.items():
        _known(f"rows.{label}", run, runs)
    rest["runs"] = {name: _like(runs, name, ()) for name in runs}
    if not isinstance(content.get("sections"), Mapping):
        return rest
    wanted: set[tuple[str, str]] = set()
    rest["sections"] = {
        key: _section(f"sections.{key}", section, rows, each, wanted)
        for key, section in content["sections"].items()
    }
    if "compare" in content:
        compare = _known("compare", content["compare"], rows)
        for section in rest["sections"].values():
            if isinstance(section, dict) and compare in section.get("rows", ()):
                section.setdefault("compare", compare)
    for run in dict.fromkeys(rows.values()):
        for name in each:
            if (run, name) not in wanted:
                continue
            follower = _of_row(run, name)
            if follower in rest["runs"]:
                raise ValueError(f"runs.{follower}: `each` makes this run too; rename one of them")
            rest["runs"][follower] = _follower(each, name, run)
    return rest


def extended(
    base: Mapping[str, Any], own: Mapping[str, Any], joined: Sequence[str]
) -> dict[str, Any]:
    """Merge `own` over `base`; the lists of the keys `joined` hold those of the base, then its own.

    A `KEY=VALUE` of the base is left out where `own` gives the same KEY.
    """
    lists = {}
    for key in joined:
        first, then = base.get(key), own.get(key)
        if isinstance(first, list) and isinstance(then, list):
            given = {_setting(text) for text in then} - {None}
            lists[key] = [*(text for text in first if _setting(text) not in given), *then]
    return {**merge(base, own), **lists}


def _setting(text: Any) -> str | None:
    """Return the KEY of `KEY=VALUE`."""
    return text.partition("=")[0] if isinstance(text, str) and "=" in text else None


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key, {})
    if not isinstance(found, Mapping):
        raise ValueError(f"{key}: must be a mapping, found {type(found).__name__}")
    return found


def _like(runs: Mapping[str, Any], name: str, before: tuple[str, ...]) -> Any:
    run = runs[name]
    if not isinstance(run, Mapping) or "like" not in run:
        return run
    model = _known(f"runs.{name}.like", run["like"], runs)
    if model in (*before, name):
        raise ValueError(f"runs are like each other: {' -> '.join([*before, name, model])}")
    base = _like(runs, model, (*before, name))
    own = {key: value for key, value in run.items() if key != "like"}
    return extended(base, own, ("set", "command")) if isinstance(base, Mapping) else own


def _section(
    place: str,
    section: Any,
    rows: Mapping[str, str],
    each: Mapping[str, Any],
    wanted: set[tuple[str, str]],
) -> Any:
    """Write out the rows of a section; adds the runs of `each` that they need to `wanted`."""
    if not isinstance(section, Mapping):
        return section
    if isinstance(section.get("rows"), Mapping):
        return dict(section)
    labels = section.get("rows", list(rows))
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"{place}.rows: give labels of the table's `rows`, or a mapping to runs")
    read = section.get("read", [ROW])
    if not isinstance(read, list) or not read:
        raise ValueError(f"{place}.read: give a list of `{ROW}` and names of `each`")
    written = {}
    for label in labels:
        run = rows[_known(f"{place}.rows", label, rows)]
        written[label] = [
            _of_row(run, _known(f"{place}.read", name, [ROW, *each])) for name in read
        ]
        for name in read:
            _add_wanted(each, name, run, wanted)
    rest = {key: value for key, value in section.items() if key != "read"}
    return {**rest, "rows": written}


def _add_wanted(each: Mapping[str, Any], name: str, run: str, wanted: set[tuple[str, str]]) -> None:
    while name in each and (run, name) not in wanted:
        wanted.add((run, name))
        name = _before(each[name])[1]


def _before(run: Any) -> tuple[str, str]:
    """Return the key that names the run before, and that name; empty: there is none."""
    if isinstance(run, Mapping):
        for key in ("weights_from", "start_from", "after"):
            if isinstance(run.get(key), str):
                return key, run[key]
    return "", ""


def _follower(each: Mapping[str, Any], name: str, run: str) -> Any:
    key, before = _before(each[name])
    if not key:
        raise ValueError(
            f"each.{name}: give weights_from, start_from or after: `{ROW}` or a name of `each`"
        )
    return {**each[name], key: _of_row(run, _known(f"each.{name}.{key}", before, [ROW, *each]))}


def _of_row(run: str, name: str) -> str:
    return run if name == ROW else f"{run}_{name}"


def _known(place: str, name: Any, known: Mapping[str, Any] | Sequence[str]) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{place}: give a name, found {type(name).__name__}")
    if name not in known:
        raise ValueError(f"{place}: {suggestion(name, list(known), label='names')}")
    return name
