"""Settings of the data side."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from svilm_fast.core.settings import Count, Fraction, PathText, Seconds, Settings, Weight
from svilm_fast.data.errors import DataError

OrderName = Literal["permute", "window", "sort"]

Split = PathText | Annotated[list[PathText], Field(min_length=1)] | None

STORED = "stored"  # value of data.teacher_embeddings

SPLIT = "shards, or a CSV or JSONL list, or several; null: none"


class AugmentConfig(Settings):
    """Training-time changes of a clip; every frame of a clip gets the same."""

    crop_scale: tuple[Fraction, Fraction] = Field(
        (0.6, 1.0), description="smallest and largest crop, as shares of the frame's area"
    )
    crop_ratio: tuple[float, float] = Field(
        (0.75, 1.3333333333), description="bounds of the crop's width / height"
    )
    flip: Fraction = Field(0.5, description="share of the clips that are mirrored")
    # A mirrored video contradicts "from the left".
    flip_directional: bool = Field(
        False, description="also mirror clips whose captions name directions"
    )

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(f"crop_scale {self.crop_scale} must be 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio} must be 0 < smallest <= largest")
        return self


class NounsConfig(Settings):
    """How nouns are found in captions that bring none, and how they are put to the text encoder."""

    per_caption: int = Field(
        2,
        ge=1,
        le=1024,
        description="K nouns of a caption: training draws them, evaluation takes the first",
    )
    extractor: Literal["textblob", "spacy", "none"] = Field(
        "textblob", description="finds nouns for captions that come without a list of them"
    )
    spacy_model: str = Field("en_core_web_sm", description="model of extractor=spacy")
    phrases: bool = Field(True, description="true: `red circle`; false: `circle`")
    templates: tuple[str, ...] = Field(
        ("a video of {noun}.", "it is a video of {noun}.", "a clip that shows {noun}."),
        description="prompts around a noun: training draws one, evaluation takes the first",
    )

    @field_validator("templates")
    @classmethod
    def _templates_have_a_noun(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [text for text in templates if text.count("{noun}") != 1]
        if wrong or not templates:
            raise ValueError(f"every template needs one {{noun}}, and one template: {wrong}")
        return templates


class TokenizerConfig(Settings):
    """`bpe` is trained from the training captions, unless `path` names a saved one."""

    kind: Literal["bpe", "clip", "hf"] = Field(
        "bpe", description="trained byte-level BPE, CLIP's vocabulary, or a saved tokenizer.json"
    )
    path: PathText | None = Field(
        None,
        description="tokenizer.json (bpe, hf) or bpe_simple_vocab_16e6.txt.gz (clip); null: "
        "train a bpe",
    )
    vocab_size: int = Field(4096, ge=260, le=2**24, description="most tokens of a trained BPE")
    lowercase: bool = Field(True, description="a trained BPE reads everything in lower case")
    length: int = Field(32, ge=4, description="S, tokens of a caption with start and end")
    noun_length: int = Field(16, ge=4, description="Sn, tokens of a prompted noun")

    @model_validator(mode="after")
    def _hf_needs_path(self) -> TokenizerConfig:
        if self.kind == "hf" and not self.path:
            raise ValueError("tokenizer.kind=hf needs tokenizer.path=<folder or tokenizer.json>")
        return self


class CutPasteConfig(Settings):
    """How much of a blended clip stays its own: a run of segments, its length drawn uniformly."""

    # At least one segment is left to each of the two clips.
    shortest: Fraction = Field(
        0.5, description="shortest run that stays, as a share of video.num_segments"
    )
    longest: Fraction = Field(
        1.0, description="longest run that stays, as a share of video.num_segments"
    )

    @model_validator(mode="after")
    def _ordered(self) -> CutPasteConfig:
        if self.shortest > self.longest:
            raise ValueError(
                f"cut_paste.shortest={self.shortest:g} must not be above longest={self.longest:g}"
            )
        return self


def run_lengths(num_segments: int, shortest: float, longest: float) -> tuple[int, int]:
    """Shortest and longest run of own segments; both leave something of each clip.

    Raises ValueError where no whole number of segments lies between the two shares.
    """
    least = max(1, math.ceil(shortest * num_segments - 1e-9))
    most = min(num_segments - 1, math.floor(longest * num_segments + 1e-9))
    if least > most:
        raise ValueError(
            f"no run of {num_segments} segments is {shortest:g} to {longest:g} of them long and "
            "leaves some to its partner: lower data.cut_paste.shortest or raise its longest"
        )
    return least, most


class CaptionMixConfig(Settings):
    """Shares of the grains among the captions that training draws; all 0: only `data.captions`.

    A sample's grain is drawn in proportion, among the grains that it has a caption of. A caption
    without a grain stands for all of them.
    """

    coarse: Weight = Field(0.0, description="share of coarse captions")
    fine: Weight = Field(0.0, description="share of fine captions")
    fused: Weight = Field(0.0, description="share of fused captions")

    def shares(self) -> dict[str, float]:
        """The shares above 0, by grain."""
        return {name: share for name, share in self.model_dump().items() if share > 0}


class LimitsConfig(Settings):
    """What a single sample may cost; beyond it is refused and counted, before it is decoded."""

    frame_pixels: Count = Field(8192 * 4352, description="most pixels of a frame")
    frames: Count = Field(36_000, description="most frames of a video file")
    video_bytes: Count = Field(2**30, description="largest video file")
    decode_s: float = Field(
        300.0, gt=0, description="longest decoding of a video, seconds; loading: timeout_s / 2"
    )
    memory_bytes: Count = Field(4 * 2**30, description="most memory that decoding a video takes")
    json_bytes: Count = Field(2**26, description="largest json of a sample")
    shard_members: Count = Field(2_000_000, description="most members of a tar file")


class SkipsConfig(Settings):
    """How many distinct samples of a rank may be skipped before loading stops with an error."""

    fraction: Fraction = Field(0.01, description="share of the samples that may be skipped")
    always_allowed: int = Field(10, ge=0, description="this many may always be skipped")


class DataConfig(Settings):
    """Where clips and captions come from, and how they become batches.

    A split is a folder of tar shards, a glob of them, one shard, a CSV or JSONL list, or several
    of these; `None` means that the split does not exist.
    """

    train: Split = Field(None, description="training clips: " + SPLIT)
    val: Split = Field(None, description="validation clips: " + SPLIT)
    test: Split = Field(None, description="test clips: " + SPLIT)
    select: PathText | None = Field(
        None,
        description="selection of `svilm data filter`: the samples of data.train that are read; "
        "null: all",
    )
    videos: PathText | None = Field(
        None, description="folder of the videos that lists name; null: the list's own"
    )
    video_embeddings: PathText | None = Field(
        None,
        description="folder of `svilm embed`, read instead of training videos; null: decode them",
    )
    teacher_embeddings: PathText | None = Field(
        None,
        description="a teacher's embeddings of the training clips, for objectives.distill: a "
        "folder of `svilm embed`, or `stored`: those in the shards or beside the list; null: none",
    )
    captions: Literal["coarse", "fine", "fused", "none"] = Field(
        "fused",
        description="which caption is read where a sample has one of each grain; none: no caption "
        "is read or needed",
    )
    caption_mix: CaptionMixConfig = CaptionMixConfig()
    shuffle_captions: bool = Field(
        False, description="control experiment: shuffle the training captions over the videos"
    )
    short_clip: Literal["repeat", "skip"] = Field(
        "repeat", description="videos with fewer frames than asked: repeat some, or leave them out"
    )
    first_seconds: Seconds | None = Field(
        None,
        description="only so many seconds from the start of each video or segment are used, as "
        "DiDeMo's videos are cut at 30; null: all",
    )
    frames_by: Literal["time", "index"] = Field(
        "time",
        description="a clip's frames lie in equal parts of the video's time, or of its frames; "
        "they differ where the frame rate varies",
    )
    resize_margin: float = Field(
        8 / 7, ge=1.0, le=16.0, description="short side before the crop / video.image_size"
    )
    augment: AugmentConfig = AugmentConfig()
    nouns: NounsConfig = NounsConfig()
    cut_paste: CutPasteConfig = CutPasteConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    limits: LimitsConfig = LimitsConfig()
    skips: SkipsConfig = SkipsConfig()
    decoder: Literal["auto", "pyav", "torchcodec", "spdl"] = Field(
        "auto",
        description="library that decodes; auto: pyav. The others are extras, for trusted files",
    )
    compression: Literal["none", "kmeans", "gmm", "agglomerative", "dbscan"] = Field(
        "none",
        description="how `svilm data compress` compressed the training clips; none: videos",
    )
    decompress: Literal["device", "worker"] = Field(
        "device",
        description="where pre-training decodes compressed clips. device: one gather, of the kept "
        "tokens alone; crops are video.image_size pixels at a drawn place, not scaled. worker: "
        "whole frames, with all of data.augment",
    )
    workers: int = Field(
        2,
        ge=0,
        le=1024,
        description="processes that load; 0, or with cache=memory: the training process loads",
    )
    unit: int = Field(
        8, ge=1, le=1024, description="clips that a worker loads at a time, in shared memory"
    )
    prefetch: int = Field(2, ge=1, le=1024, description="batches of a rank that are kept ready")
    timeout_s: Seconds = Field(
        120.0,
        description="seconds that a worker may take for a clip; longer ends the run",
    )
    same_source: Literal["ignore", "separate", "mask"] = Field(
        "ignore",
        description="clips of one source video in a global batch: ignore: negatives of each other; "
        "mask: no negatives; separate: an order that puts none of them into one batch",
    )
    order: OrderName = Field(
        "permute",
        description="order of an epoch: permute: keyed permutation, no memory; window: shards "
        "permuted, samples permuted inside windows of shards, for object stores; sort: by a hash "
        "of each sample's name, 8 bytes a sample, the order of older checkpoints",
    )
    window: Count = Field(64, description="shards of a window of order=window")
    cache: Literal["none", "memory"] = Field(
        "none", description="memory: keep decoded clips; results are the same"
    )
    cache_bytes: Count = Field(
        4 * 2**30, description="size of the cache per process; further clips are decoded each time"
    )


def build_data_config(**settings: Any) -> DataConfig:
    """The data settings given; DataError with the first that is wrong."""
    try:
        return DataConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise DataError(f"{name}: {first['msg']}, found {first['input']!r:.60}") from None
