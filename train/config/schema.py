"""The typed configuration tree of a run, from which everything else is generated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from svilm_fast.core.settings import (
    Clips,
    Count,
    PathText,
    Seconds,
    Settings,
    ShareBelowOne,
    SomeSteps,
    Steps,
)
from svilm_fast.data.config import STORED, DataConfig, run_lengths
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig, with_preset
from svilm_fast.models.pretrained.config import WeightsConfig
from svilm_fast.objectives.config import ObjectivesConfig
from svilm_fast.tasks.settings import DEFAULT_TASK, EvaluationConfig, TaskSettings


class RunSettings(Settings):
    """Folder, name and reproducibility of a run."""

    name: str = Field("run", description="name shown in logs and in the report")
    dir: PathText = Field(
        "runs/run", description="run directory; everything the run writes is in it"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, data order and all noise")
    deterministic: bool = Field(
        False, description="use deterministic algorithms; an operation without one is an error"
    )
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads of torch per rank; null: torch's default"
    )


class LayerDecayConfig(Settings):
    """Learning rate by depth: layer l of a tower of d layers gets factor ** (d + 1 - l)."""

    video: float = Field(
        1.0, gt=0, le=1, description="factor per layer of the video tower; its head keeps 1"
    )
    text: float = Field(
        1.0, gt=0, le=1, description="factor per layer of the text tower; its head keeps 1"
    )


class OptimizerConfig(Settings):
    """AdamW or SGD with momentum, and which parameters decay."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(1e-3, gt=0, le=1000, description="peak learning rate")
    betas: tuple[ShareBelowOne, ShareBelowOne] = Field(
        (0.9, 0.98), description="AdamW's two decay rates"
    )
    eps: float = Field(1e-8, gt=0, le=1, description="AdamW's epsilon")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    nesterov: bool = Field(False, description="SGD with Nesterov momentum")
    weight_decay: float = Field(0.05, ge=0, le=1000, description="decoupled for AdamW, L2 for SGD")
    decay_one_dimensional: bool = Field(
        False, description="whether biases, norms and other one-dimensional parameters decay too"
    )
    no_decay: tuple[str, ...] = Field(
        ("position", "token", "scale", "scalar", "temperature"),
        description="parameters whose own name contains one of these do not decay",
    )
    layer_decay: LayerDecayConfig = Field(default_factory=lambda: LayerDecayConfig())


class EmaConfig(Settings):
    """An exponential moving average of the weights."""

    decay: float | None = Field(
        None, gt=0, lt=1, description="EMA decay per step; null: no average"
    )
    start_step: Steps = Field(
        0, description="the average starts as the weights after this many steps"
    )
    warmup: bool = Field(
        False, description="ramp up the decay as (1 + n) / (10 + n) after n updates"
    )
    every_steps: SomeSteps = Field(
        1, description="steps between updates, each of which decays by decay ** every_steps"
    )
    evaluate: bool = Field(
        True, description="evaluation and report read the average instead of the weights"
    )


class ScheduleConfig(Settings):
    """Learning rate over the steps: linear warm-up, then a decay to a floor."""

    shape: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay curve")
    warmup_steps: Steps | None = Field(None, description="warm-up in steps; null: warmup_fraction")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="warm-up as a share of all steps")
    final_fraction: float = Field(0.01, ge=0, le=1, description="floor as a share of the peak rate")


class ProfileConfig(Settings):
    """A torch.profiler window, written as a Chrome trace."""

    start_step: Steps = Field(3, description="first step of the window, counted from the start")
    steps: Steps = Field(0, description="length of the window in steps; 0 switches it off")


class TrainingConfig(Settings):
    """Length, batch, precision and limits of the training."""

    global_batch: Clips = Field(32, description="video-text pairs of a step over all ranks")
    micro_batch: Clips | Literal["auto"] | None = Field(
        None,
        description="most pairs per rank in one pass of the encoders (gradient cache: "
        "same gradient, less memory, one more forward); null: the rank's whole batch",
    )
    memory_bytes: Count | None = Field(
        None, description="memory of a rank that `auto` plans for; null: what is free"
    )
    steps: SomeSteps | None = Field(
        None, description="optimizer steps; null: as epochs says, else 1000"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="passes over the training data, instead of steps; null: as steps says",
    )
    precision: Literal["fp32", "bf16_autocast", "bf16"] = Field(
        "bf16_autocast",
        description="bf16_autocast keeps fp32 parameters; bf16 casts them (ZeRO 1 to 3 only)",
    )
    compile: Literal["none", "blocks"] = Field(
        "none", description="blocks: torch.compile each transformer block (needs a C++ compiler)"
    )
    gradient_clipping: float = Field(
        1.0, ge=0, description="clip gradients to this norm; 0: no clipping"
    )
    max_non_finite_steps: int = Field(
        1, ge=1, description="end the run at this many non-finite steps in a row"
    )
    stop_after_steps: SomeSteps | None = Field(
        None,
        description="save and stop at this step although the schedule is longer; null: at its end",
    )
    profile: ProfileConfig = Field(default_factory=lambda: ProfileConfig())

    @field_validator("micro_batch", mode="before")
    @classmethod
    def _some_pairs(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not whole and value not in (None, "auto"):
            raise ValueError(
                "needs a number of pairs from 1, auto, or null for the rank's whole batch"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = [name for name in ("steps", "epochs") if values.get(name) is not None]
        if len(given) == 2:
            raise ValueError("set either training.steps or training.epochs, not both")
        return values if given else values | {"steps": 1000}


class DistributedConfig(Settings):
    """The process group."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the ranks compute")
    timeout_seconds: Seconds = Field(
        120.0,
        description="seconds that a collective of a step may take; longer ends the run",
    )
    solo_timeout_seconds: Seconds = Field(
        600.0,
        description="the same where ranks wait for one that works alone: at the start, in the "
        "first step, a save and an evaluation",
    )
    gradient_reduction: Literal["auto", "coalesce", "boundary"] = Field(
        "auto",
        description="with training.micro_batch: coalesce keeps full gradients during the replay "
        "and reduces them at its end; boundary adds up ZeRO's shards",
    )


class DeepSpeedConfig(Settings):
    """Settings of DeepSpeed; `extra` is for its keys without a setting here."""

    zero_stage: Literal[0, 1, 2, 3, "auto"] = Field(
        1, description="what ZeRO shards over the ranks; auto: what fits (svilm plan)"
    )
    bucket_elements: int = Field(
        50_000_000, ge=1, le=2**34, description="elements per bucket of a reduction or gather"
    )
    gradient_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="dtype in which bf16_autocast reduces the gradients of linear layers"
    )
    overlap_communication: bool = Field(
        False, description="reduce gradients on a side stream during backward (CUDA)"
    )
    persistence_elements: int = Field(
        100_000, ge=0, description="ZeRO 3 keeps parameters up to this size on every rank"
    )
    prefetch_elements: int = Field(50_000_000, ge=0, description="elements that ZeRO 3 prefetches")
    live_elements: int = Field(
        1_000_000_000, ge=0, description="ZeRO 3 holds at most this many gathered elements"
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="merged into DeepSpeed's dictionary last, key by key"
    )


class ReportConfig(Settings):
    """The report page of a finished run."""

    at_end: bool = Field(
        True,
        description="write report.html after the last step, on evaluation.split; needs "
        "checkpoint.portable_at_end",
    )


class LoggingConfig(Settings):
    """Logs during the run."""

    every_steps: int = Field(10, ge=1, description="steps between two records and text lines")
    progress: Literal["auto", "on", "off"] = Field(
        "auto", description="progress bar; auto: where rank 0 writes to a terminal"
    )
    tensorboard: bool = Field(True, description="write TensorBoard events")
    wandb: bool = Field(False, description="log to Weights & Biases (needs the extra `wandb`)")
    trackio: bool = Field(False, description="log to trackio (needs the extra `trackio`)")
    project: str = Field("svilm-fast", description="project name for wandb and trackio")


class CheckpointConfig(Settings):
    """When checkpoints are saved, and how many are kept."""

    every_steps: Steps = Field(0, description="steps between checkpoints; 0: only at the end")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    when_full: Literal["stop", "continue"] = Field(
        "stop",
        description="if a checkpoint does not fit on the disk: end the run, or skip it",
    )
    portable_at_end: bool = Field(
        True, description="write the portable checkpoint (safetensors and JSON) at the end"
    )


class RunConfig(Settings):
    """All settings of a run; `train.config.load.tree_of` returns the tree of a named task."""

    task: TaskSettings = Field(default_factory=lambda: TaskSettings())
    run: RunSettings = Field(default_factory=lambda: RunSettings())
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    video: VideoConfig = Field(default_factory=lambda: VideoConfig())
    text: TextConfig = Field(default_factory=lambda: TextConfig())
    weights: WeightsConfig = Field(default_factory=lambda: WeightsConfig())
    objectives: ObjectivesConfig = Field(default_factory=lambda: ObjectivesConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    ema: EmaConfig = Field(default_factory=lambda: EmaConfig())
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig())
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig())
    distributed: DistributedConfig = Field(default_factory=lambda: DistributedConfig())
    deepspeed: DeepSpeedConfig = Field(default_factory=lambda: DeepSpeedConfig())
    evaluation: EvaluationConfig = Field(default_factory=lambda: EvaluationConfig())
    report: ReportConfig = Field(default_factory=lambda: ReportConfig())
    logging: LoggingConfig = Field(default_factory=lambda: LoggingConfig())
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig())

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Apply the model preset, and derive the tokenizer's sizes from the text encoder."""
        if not isinstance(values, dict):
            return values
        filled = with_preset(values)
        text, data = filled.get("text"), filled.get("data")
        if not isinstance(text, dict) or not isinstance(data, dict | None):
            return filled
        data = dict(data or {})
        tokenizer = data.get("tokenizer") or {}
        if isinstance(tokenizer, dict):
            follows = {key: text[key] for key in ("vocab_size", "length") if key in text}
            filled["data"] = data | {"tokenizer": follows | tokenizer}
        return filled

    @model_validator(mode="after")
    def _text_fits_the_tokenizer(self) -> RunConfig:
        for name in ("length", "noun_length"):
            asked = getattr(self.data.tokenizer, name)
            if asked > self.text.length:
                raise ValueError(
                    f"data.tokenizer.{name}={asked} is more than text.length={self.text.length}"
                )
        return self

    @model_validator(mode="after")
    def _text_weights_have_their_tokenizer(self) -> RunConfig:
        tokenizer = self.data.tokenizer
        if self.weights.text is not None and tokenizer.path is None and tokenizer.kind != "clip":
            raise ValueError(
                "weights.text needs the tokenizer that its weights were trained with: set "
                "data.tokenizer.path to its tokenizer.json or folder (or data.tokenizer.kind=clip)"
            )
        return self

    @model_validator(mode="after")
    def _stored_videos_suffice(self) -> RunConfig:
        if self.data.video_embeddings is None:
            return self
        if self.task.own_loss or self.task.name != DEFAULT_TASK:
            raise ValueError(f"data.video_embeddings is for task {DEFAULT_TASK} only")
        if self.video.lock is not True:
            raise ValueError(
                "data.video_embeddings needs video.lock=true: stored embeddings do not follow a "
                "tower that is trained"
            )
        other = sorted(set(self.objectives.reads().video) - {("clean", "video")})
        if other:
            names = ", ".join(f"{feature} of {view} clips" for view, feature in other)
            raise ValueError(
                f"data.video_embeddings holds embeddings of clean clips, but an objective reads "
                f"{names}: set objectives.contrast.video=clean objectives.grounding.weight=0 "
                "objectives.temporal.weight=0"
            )
        return self

    @model_validator(mode="after")
    def _teacher_is_stored(self) -> RunConfig:
        if self.task.own_loss:
            return self
        stored, where = self.objectives.reads().stored, self.data.teacher_embeddings
        if stored and where is None:
            raise ValueError(
                "an objective reads a teacher's embeddings: set data.teacher_embeddings to the "
                "folder that `svilm embed TRAIN --run TEACHER --out FOLDER` wrote"
            )
        if "text" in stored and where == STORED:
            raise ValueError(
                "data.teacher_embeddings=stored has no embeddings of captions: set "
                "objectives.distill.texts=false, or give a folder of `svilm embed`"
            )
        if stored and self.data.video_embeddings is not None:
            raise ValueError(
                "data.video_embeddings leaves no video tower that could follow "
                "data.teacher_embeddings: set one of them"
            )
        return self

    @model_validator(mode="after")
    def _one_kind_of_masked_pairs(self) -> RunConfig:
        mask = self.data.same_source == "mask" and not self.task.own_loss
        if mask and self.objectives.reads().partners:
            raise ValueError(
                "data.same_source=mask and exclude_partner both name pairs that are no negatives, "
                "and only one of them can: set objectives.contrast.exclude_partner=false"
            )
        return self

    @model_validator(mode="after")
    def _a_teacher_has_weights(self) -> RunConfig:
        if self.task.own_loss or not self.objectives.reads().teacher:
            return self
        if self.ema.decay is None or self.ema.start_step:
            names = [n for n, each in self.objectives.active().items() if each.reads().teacher]
            raise ValueError(
                f"objectives.{names[0]} reads a teacher, whose weights are the moving average from "
                "the first step on: set ema.decay (0.996, say) and ema.start_step=0, or "
                f"objectives.{names[0]}.weight=0; found ema.decay="
                f"{'null' if self.ema.decay is None else self.ema.decay} ema.start_step="
                f"{self.ema.start_step}"
            )
        return self

    @model_validator(mode="after")
    def _a_tower_is_trained(self) -> RunConfig:
        both = self.video.lock is True and self.text.lock is True
        if both and not self.task.own_loss:
            raise ValueError(
                "video.lock=true and text.lock=true leave no tower to train: unlock one, or the "
                "last layers of one (video.lock=0 trains only its head)"
            )
        return self

    @model_validator(mode="after")
    def _precision_fits_the_stage(self) -> RunConfig:
        if self.training.precision == "bf16" and self.deepspeed.zero_stage == 0:
            raise ValueError(
                "training.precision=bf16 needs deepspeed.zero_stage 1, 2 or 3 (stage 0 follows "
                "another trajectory); use bf16_autocast or raise the stage"
            )
        return self

    @model_validator(mode="after")
    def _objectives_fit_the_model(self) -> RunConfig:
        objectives, video = self.objectives, self.video
        if self.task.own_loss:
            return self
        objectives.check(self)
        if "blended" in objectives.reads().views:
            if video.num_segments < 2:
                without = [
                    setting
                    for name, objective in objectives.active().items()
                    if (setting := objective.without_blending(name)) is not None
                ]
                raise ValueError(
                    f"video.num_segments={video.num_segments} leaves nothing to blend: set it to 2 "
                    f"or more, or let no objective read blended videos ({', '.join(without)})"
                )
            cut = self.data.cut_paste
            run_lengths(video.num_segments, cut.shortest, cut.longest)
        return self
