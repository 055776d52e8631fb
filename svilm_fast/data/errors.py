"""Typed errors of the data side; each names the reason under which a skipped sample is counted."""

from __future__ import annotations


class DataError(ValueError):
    """Something is wrong with the data; the message is one line that says how to mend it."""

    reason = "data"


class MissingFileError(DataError):
    """A file that a list or a setting names is not there."""

    reason = "missing file"


class ListFormatError(DataError):
    """A CSV or JSONL list cannot be read or lacks a column."""

    reason = "list format"


class ShardError(DataError):
    """A tar shard is truncated, damaged or holds members that are not allowed."""

    reason = "bad shard"


class ChecksumError(ShardError):
    """The bytes of a member differ from the checksum in the shard's index."""

    reason = "checksum"


class SampleJsonError(DataError):
    """The description of a sample is not the JSON that is expected."""

    reason = "bad sample json"


class CaptionError(DataError):
    """A sample has no usable caption."""

    reason = "no caption"


class CaptionWeightError(DataError):
    """The weights of a sample's captions are not one number, 0 or above, for each."""

    reason = "bad caption weights"


class AnnotationError(DataError):
    """A sample's label, question or answers are of a kind that is not read."""

    reason = "bad label, question or answers"


class EmbeddingError(DataError):
    """A sample's stored embedding is missing or not the vector that is expected."""

    reason = "bad embedding"


class VideoError(DataError):
    """A video cannot be decoded."""

    reason = "undecodable video"


class PaletteError(VideoError):
    """A compressed clip or its palette is damaged, or not what the settings ask for."""

    reason = "bad compressed clip"


class TruncatedVideoError(VideoError):
    """A video ends before the number of frames its container declares."""

    reason = "truncated video"


class EmptyVideoError(VideoError):
    """A video has no frames or no video stream."""

    reason = "no frames"


class OversizedVideoError(VideoError):
    """A video exceeds the limits on pixels, frames or bytes."""

    reason = "oversized video"


class SlowVideoError(VideoError):
    """Decoding a video takes longer than the limits allow."""

    reason = "slow video"


class CrashedDecoderError(VideoError):
    """A video ends the process that decodes it."""

    reason = "decoder crashed"


class ShortClipError(VideoError):
    """A video has fewer frames than asked, and the setting says to skip such videos."""

    reason = "short clip"


class SegmentError(DataError):
    """A sample's start and end name no part of its video."""

    reason = "bad segment"


class SkipBudgetError(DataError):
    """More samples were skipped than the settings allow."""

    reason = "skip budget"


class WorkerError(DataError):
    """A loader worker failed, hung or died; the message names the samples."""

    reason = "worker"
