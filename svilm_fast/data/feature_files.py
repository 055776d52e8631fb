"""Features over time, one Parquet file per video, with everything that their times follow from.

A file has one row per vector: `time` (float64, its centre in seconds) and `feature` (list of C
float32). Stride, clip length, frame rate and duration are in the file's metadata. Folders of `.npy`
[T, C] or headerless `.csv` files of other projects are read too, with a layout given from outside.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svilm_fast.core.errors import UserError
from svilm_fast.core.messages import single_line
from svilm_fast.data.errors import DataError, MissingFileError

METADATA_KEY = b"svilm.features"
MANIFEST = "features.json"
# Which output of a video encoder a vector is: see ClipEncoder.
ClipFeatures = Literal["embedding", "pooled"]
_BEGINNING = 4096  # bytes of a file that its fingerprint covers


class FeatureFileError(DataError):
    """A feature file is damaged, or has another layout than is expected."""

    reason = "bad features"


@dataclass(frozen=True)
class FeatureLayout:
    """stride: frames between two vectors; clip: frames that a vector sees; fps: frames a second."""

    stride: int
    clip: int
    fps: float

    def centre(self, index: Any) -> Any:
        """Seconds of the middle of vector `index` (a number or an array)."""
        return (index * self.stride + 0.5 * self.clip) / self.fps

    def index(self, seconds: Any) -> Any:
        """The (fractional) vector whose middle lies at `seconds`: the inverse of `centre`."""
        return (seconds * self.fps - 0.5 * self.clip) / self.stride


@dataclass(frozen=True)
class VideoFeatureSequence:
    """Features of one video. features: float32 [T, C]; duration: seconds, None where unknown."""

    video: str
    features: np.ndarray
    layout: FeatureLayout
    duration: float | None


def parquet() -> Any:
    """The module pyarrow.parquet. Raises UserError where pyarrow is missing."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "features are stored in Parquet, which needs pyarrow: pip install svilm-fast[parquet]"
        ) from None


def feature_path(folder: Path, video: str) -> Path:
    """The file of a video: its id with `/` and other separators quoted."""
    return folder / f"{urllib.parse.quote(video, safe=' ')}.parquet"


def parquet_bytes(sequence: VideoFeatureSequence) -> bytes:
    """The file's content; equal features give equal bytes."""
    writer = parquet()
    arrow = importlib.import_module("pyarrow")
    features = np.ascontiguousarray(sequence.features, dtype=np.float32)
    count, width = features.shape
    described = {
        "video": sequence.video,
        "duration": sequence.duration,
        **asdict(sequence.layout),
    }
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(features.ravel()), width)
    times = sequence.layout.centre(np.arange(count, dtype=np.float64))
    table = arrow.table({"time": arrow.array(times), "feature": vectors})
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(described)})
    sink = arrow.BufferOutputStream()
    writer.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def read_parquet(path: Path) -> VideoFeatureSequence:
    """Read a file of `parquet_bytes`. Raises FeatureFileError."""
    reader = parquet()
    arrow = importlib.import_module("pyarrow")
    try:
        table = reader.read_table(path, memory_map=False, partitioning=None)
        described = json.loads((table.schema.metadata or {})[METADATA_KEY])
        layout = FeatureLayout(
            int(described["stride"]), int(described["clip"]), float(described["fps"])
        )
        column = table.column("feature").combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        features = flat.reshape(table.num_rows, -1).astype(np.float32)
        duration = described["duration"]
        sequence = VideoFeatureSequence(str(described["video"]), features, layout, duration)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there are no features") from None
    except (KeyError, ValueError, TypeError, OSError, arrow.ArrowException) as error:
        raise FeatureFileError(
            f"{path}: not a file of `svilm localize extract`: {single_line(error)}"
        ) from None
    return _checked(sequence, path)


def _checked(sequence: VideoFeatureSequence, path: Path) -> VideoFeatureSequence:
    features = sequence.features
    if features.ndim != 2 or not features.size:
        raise FeatureFileError(f"{path}: expected [T, C] with at least one vector")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise FeatureFileError(f"{path}: vector {row} is not finite")
    return sequence


@dataclass(frozen=True)
class FeatureFolder:
    """A folder of feature files.

    layout: of files that do not hold their own (.npy, .csv); None: such files are refused.
    """

    path: Path
    layout: FeatureLayout | None = None

    def manifest(self) -> dict[str, Any]:
        """What `svilm localize extract` wrote beside the features; empty for other folders."""
        try:
            content = json.loads((self.path / MANIFEST).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise FeatureFileError(f"{self.path / MANIFEST}: {single_line(error)}") from None
        return content if isinstance(content, dict) else {}

    def find(self, video: str) -> Path | None:
        """The file of a video, with or without the prefix `v_`; None where there is none."""
        for name in (video, f"v_{video}", video.removeprefix("v_")):
            quoted = feature_path(self.path, name)
            plain = [self.path / f"{name}{suffix}" for suffix in (".npy", ".csv")]
            for path in (quoted, *plain):
                if path.is_file():
                    return path
        return None

    def read(self, video: str, duration: float | None = None) -> VideoFeatureSequence:
        """The features of a video. Raises MissingFileError or FeatureFileError."""
        path = self.find(video)
        if path is None:
            raise MissingFileError(f"{self.path}: there are no features of video {video!r}")
        if path.suffix == ".parquet":
            return read_parquet(path)
        if self.layout is None:
            raise FeatureFileError(
                f"{path}: it does not say which frames a vector saw: set task.layout.stride"
                ", task.layout.clip and task.layout.fps"
            )
        return _checked(
            VideoFeatureSequence(video, _READERS[path.suffix](path), self.layout, duration), path
        )


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise FeatureFileError(f"{path}: {single_line(error)}") from None


def _read_csv(path: Path) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureFileError(f"{path}: {single_line(error)}") from None
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = [float(cell) for cell in line.split(",")]
        except ValueError:
            if number == 1:  # a header of column names
                continue
            raise FeatureFileError(f"{path}, line {number}: expected numbers") from None
        if rows and len(row) != len(rows[0]):
            raise FeatureFileError(
                f"{path}, line {number}: {len(row)} columns, the lines before have {len(rows[0])}"
            )
        rows.append(row)
    return np.array(rows, dtype=np.float32)


_READERS: dict[str, Callable[[Path], np.ndarray]] = {".npy": _read_npy, ".csv": _read_csv}


def features_fingerprint(folder: Path, paths: Sequence[Path]) -> str:
    """A hash that changes when features are added or replaced.

    It covers names and sizes, and what made the features: features.json, or else the beginning of
    each file, because features of another encoder have the same sizes.
    """
    manifest = folder / MANIFEST
    made_by = manifest.read_bytes() if manifest.is_file() else None
    digest = hashlib.sha256(made_by or b"")
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if made_by is None:
            with path.open("rb") as file:
                digest.update(file.read(_BEGINNING))
    return digest.hexdigest()[:16]
