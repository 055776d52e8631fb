"""Settings of the data side."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from svilm_fast.settings import Settings

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class AugmentConfig(Settings):
    """Training-time changes of a clip; every frame of a clip gets the same."""

    crop_scale: tuple[Fraction, Fraction] = (0.6, 1.0)  # share of the frame's area
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333)  # width / height
    flip: Fraction = 0.5
    # A mirrored video contradicts "from the left": such captions are not flipped unless asked.
    flip_directional: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(f"crop_scale {self.crop_scale} must be 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio} must be 0 < smallest <= largest")
        return self


class NounsConfig(Settings):
    """How nouns are found in captions that bring none, and how they are put to the text encoder."""

    per_caption: Count = 2  # K; training draws K of them, evaluation takes the first K
    extractor: Literal["textblob", "spacy", "none"] = "textblob"
    spacy_model: str = "en_core_web_sm"
    phrases: bool = True  # "red circle" rather than "circle"
    templates: tuple[str, ...] = (
        "a video of {noun}.",
        "it is a video of {noun}.",
        "a clip that shows {noun}.",
    )

    @model_validator(mode="after")
    def _templates_have_a_noun(self) -> NounsConfig:
        wrong = [text for text in self.templates if text.count("{noun}") != 1]
        if wrong or not self.templates:
            raise ValueError(f"every template needs one {{noun}}, and one template: {wrong}")
        return self


class TokenizerConfig(Settings):
    """`bpe` is trained from the training captions, unless `path` names a saved one."""

    kind: Literal["bpe", "clip", "hf"] = "bpe"
    path: str | None = None  # tokenizer.json (bpe, hf) or bpe_simple_vocab_16e6.txt.gz (clip)
    vocab_size: Annotated[int, Field(ge=260)] = 4096
    lowercase: bool = True
    length: Annotated[int, Field(ge=4)] = 32  # S, with start and end
    noun_length: Annotated[int, Field(ge=4)] = 16  # Sn, prompt included

    @model_validator(mode="after")
    def _hf_needs_path(self) -> TokenizerConfig:
        if self.kind == "hf" and not self.path:
            raise ValueError("tokenizer.kind=hf needs tokenizer.path=<folder or tokenizer.json>")
        return self


class CutPasteConfig(Settings):
    """How much of a blended clip stays its own: a run of segments, its length drawn uniformly."""

    shortest: Fraction = 0.5  # shares of video.num_segments; at least one segment each way
    longest: Fraction = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> CutPasteConfig:
        if self.shortest > self.longest:
            raise ValueError(
                f"cut_paste.shortest={self.shortest:g} must not be above longest={self.longest:g}"
            )
        return self


class LimitsConfig(Settings):
    """What a single sample may cost; beyond it is refused and counted, before it is decoded."""

    frame_pixels: Count = 8192 * 4352
    frames: Count = 36_000
    video_bytes: Count = 2**30
    json_bytes: Count = 2**26
    shard_members: Count = 2_000_000


class SkipsConfig(Settings):
    """How many distinct samples of a rank may be skipped before loading stops with an error."""

    fraction: Fraction = 0.01
    always_allowed: Annotated[int, Field(ge=0)] = 10


class DataConfig(Settings):
    """Where clips and captions come from, and how they become batches.

    A split is a folder of tar shards, a glob of them, one shard, a CSV or JSONL list, or several
    of these; `None` means that the split does not exist.
    """

    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    videos: str | None = None  # folder of the videos that lists name; default: the list's folder
    captions: Literal["coarse", "fine", "fused"] = "fused"
    shuffle_captions: bool = False  # control: training captions go to other videos
    short_clip: Literal["repeat", "skip"] = "repeat"  # fewer frames than asked
    resize_margin: Annotated[float, Field(ge=1.0)] = 8 / 7  # short side before the crop, x size
    augment: AugmentConfig = AugmentConfig()
    nouns: NounsConfig = NounsConfig()
    cut_paste: CutPasteConfig = CutPasteConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    limits: LimitsConfig = LimitsConfig()
    skips: SkipsConfig = SkipsConfig()
    decoder: Literal["auto", "pyav", "cv2"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 2  # 0, or cache=memory: in the training process
    prefetch: Count = 2  # batches per worker
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    cache: Literal["none", "memory"] = "none"  # decoded clips; results are the same with both
    cache_bytes: Count = 4 * 2**30  # per process; clips beyond it are decoded each time
