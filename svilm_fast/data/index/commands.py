"""What `svilm data index` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from svilm_fast.core.text import counted
from svilm_fast.core.units import bytes_text
from svilm_fast.data.config import build_data_config
from svilm_fast.data.index.build import BuildEngine
from svilm_fast.data.index.file import Index
from svilm_fast.data.index.part import IndexParameters
from svilm_fast.data.index.sources import read_sources
from svilm_fast.data.index.store import make_index


def index(
    paths: Sequence[str],
    settings: Mapping[str, Any],
    *,
    nouns: bool,
    engine: BuildEngine | None = None,
) -> list[str]:
    """Index sources beside the first of them; lines that say what was indexed and refused.

    settings: those of `DataConfig` that decide which samples there are. Raises DataError.
    """
    config = build_data_config(**settings)
    parameters = IndexParameters.of(config, nouns=nouns)
    path = make_index(read_sources(paths, config.videos), parameters, engine)
    made = Index.open(str(path)).header
    lines = [
        f"wrote {path} ({bytes_text(path.stat().st_size)}): {counted(made['samples'], 'sample')}, "
        f"{counted(made['captions'], 'caption')}"
    ]
    for grain, view in made["views"].items():
        if view["rejected"]:
            refused = counted(view["rejected"], "sample")
            lines.append(f"data.captions={grain}: {refused} refused, {view['samples']:,} usable")
    return lines
