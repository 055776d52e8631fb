"""`svilm data compress`: every clip of a source to a palette and codes, in shards."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svilm_fast.core.files import write_atomically
from svilm_fast.core.machine import package_version
from svilm_fast.core.text import counted
from svilm_fast.core.units import bytes_text
from svilm_fast.data.compress.clustering import KMeansEngine, Method
from svilm_fast.data.compress.shard import CompressSettings, Scope, compress_shard
from svilm_fast.data.compress.vectors import bits_of
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode_process import end_idle_processes
from svilm_fast.data.errors import DataError
from svilm_fast.data.lists import is_list
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.outputs import check_shard_folder
from svilm_fast.data.offline.work import Unit, do_work
from svilm_fast.data.sample_units import list_units, shard_units
from svilm_fast.data.samples import open_split
from svilm_fast.data.skips import Skip, nothing_left, refused_lines

KIND = "compress"
REPORT = f"{KIND}_report.json"
_LIBRARIES = {KMeansEngine.FAISS: "faiss-cpu", KMeansEngine.FLASH: "flash-kmeans"}


@dataclass
class CompressReport:
    """What compression wrote and refused.

    pixel_bytes: of the stored frames as RGB. clip_bytes: of the files of the clips; palette_bytes:
    of palettes that clips share.
    """

    clips: int = 0
    frames: int = 0
    pixel_bytes: int = 0
    source_bytes: int = 0
    clip_bytes: int = 0
    palette_bytes: int = 0
    squared_error: int = 0
    refused: list[Skip] = field(default_factory=list)

    @property
    def factor(self) -> float:
        """Bytes of the pixels / bytes of clips and palettes."""
        return self.pixel_bytes / max(1, self.clip_bytes + self.palette_bytes)

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio over all stored pixels, dB."""
        return psnr_of(self.squared_error, self.pixel_bytes)

    def lines(self, examples: int = 20) -> list[str]:
        """The report as text."""
        psnr = f"PSNR {self.psnr:.1f} dB" if self.squared_error else "without an error"
        text = [
            f"compressed {counted(self.clips, 'clip')} ({counted(self.frames, 'frame')}): "
            f"{bytes_text(self.pixel_bytes)} of pixels to "
            f"{bytes_text(self.clip_bytes + self.palette_bytes)}, {self.factor:.1f} times smaller, "
            f"{psnr} (the videos have {bytes_text(self.source_bytes)}); refused "
            f"{len(self.refused)}"
        ]
        return text + refused_lines(self.refused, REPORT, examples)


def psnr_of(squared_error: float, values: int) -> float:
    """Peak signal-to-noise ratio of 8-bit values, dB; infinite without an error."""
    if not squared_error:
        return math.inf
    return 10 * math.log10(255**2 * values / squared_error)


def compress(
    source: str,
    out_dir: str | Path,
    settings: CompressSettings,
    *,
    videos: str | None = None,
    engine: OfflineEngine = OfflineEngine.LOCAL,
    workers: int | None = None,
    progress: bool | None = None,
) -> CompressReport:
    """Write a shard of compressed clips for each shard of `source`, or each 1,000 rows of a list.

    Captions, annotations, embeddings and metadata are copied; the video of a sample is replaced by
    its compressed clip, of the segment where it is one. Frame numbers stay those of the video. What
    cannot be decoded is refused, and listed in `out_dir/compress_report.json`. Work that was
    stopped continues.

    Raises DataError where nothing can be compressed, OfflineError for a folder of other work.
    """
    out = Path(out_dir)
    check_shard_folder(out, f"{KIND}_manifest.jsonl", REPORT, '"palette_bytes"')
    units = _units(source, videos)
    out.mkdir(parents=True, exist_ok=True)
    try:
        reports = do_work(
            KIND,
            compress_shard,
            units,
            settings,
            out,
            parameters=_parameters(settings),
            engine=engine,
            workers=workers,
            gpu=settings.how.engine is KMeansEngine.FLASH,
            progress=progress,
        )
    finally:
        end_idle_processes()
    report = CompressReport()
    for done in reports:
        for name, count in done["counts"].items():
            setattr(report, name, getattr(report, name) + count)
        report.squared_error += done["squared_error"]
        report.refused += [Skip(**skip) for skip in done["refused"]]
    written = asdict(report) | {"factor": round(report.factor, 4)}
    write_atomically(out / REPORT, json.dumps(written, indent=1).encode())
    if not report.clips:
        raise nothing_left(source, "no clip could be compressed", report.refused)
    return report


def _units(source: str, videos: str | None) -> list[Unit]:
    if not is_list(source):
        if videos is not None:
            raise DataError(f"--videos is the folder of a list's videos, and {source!r} is no list")
        return shard_units(source)
    table = open_split(DataConfig(train=source, videos=videos, captions="none"), "train")
    units = list_units(source, videos, table)
    return [Unit(f"{u.name}.tar", u.content, u.description, u.weight) for u in units]


def _parameters(settings: CompressSettings) -> dict[str, Any]:
    """Everything that decides the bytes; libraries of other versions may round otherwise."""
    how = settings.how
    values: dict[str, Any] = {
        "method": how.method,
        "bits": bits_of(how.entries),
        "sample": how.sample,
        "seed": how.seed,
        "block": list(settings.block),
        "scope": settings.scope,
        "frames": settings.frames,
        "short_side": settings.short_side,
        "limits": settings.limits.model_dump(mode="json"),
    }
    if how.method is Method.KMEANS:
        values["kmeans"] = how.engine
    if settings.scope is Scope.CLUSTER:
        values["clips_per_palette"] = settings.clips_per_palette
    libraries = ["av", "numpy", "scikit-learn"]
    libraries += [_LIBRARIES[how.engine]] if how.engine in _LIBRARIES else []
    return {**values, "versions": {name: package_version(name) for name in libraries}}
