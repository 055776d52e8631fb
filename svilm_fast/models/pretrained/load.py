"""Fills the video or text tower of a dual encoder with the weights of another library."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from svilm_fast.core.errors import CheckpointError
from svilm_fast.models.config import TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.positions import resized_space, resized_time
from svilm_fast.models.pretrained.config import WeightsConfig
from svilm_fast.models.pretrained.described import described_settings
from svilm_fast.models.pretrained.families import Tower, WeightFamily, family_of, listed, renamed
from svilm_fast.models.pretrained.files import WeightFiles, read_weight_files
from svilm_fast.models.pretrained.report import TowerReport
from svilm_fast.models.pretrained.resize import inflated

Tensors = dict[str, Tensor]

HEAD_WIDTH = 64  # of an attention head, in nearly all published models

_LAYER = re.compile(r"blocks\.(\d+)\.")
# Parts that pre-trained weights of images and texts lack; all others must be in the weights.
_EXTRA_TOKENS = re.compile(r"(group|class_token)")
_MAY_BE_NEW = re.compile(r"(group(s|ing_blocks|_norm|_projection)|projection|class_token)\..+")


def load_pretrained_towers(encoder: DualEncoder, weights: WeightsConfig) -> list[TowerReport]:
    """Load what the block `weights` names, and return a report of each tower.

    Raises CheckpointError with the recognised family and the settings or tensors that do not fit;
    nothing is loaded then.
    """
    towers: list[tuple[Tower, nn.Module, str]] = []
    if weights.video is not None:
        towers.append(("video", encoder.video, weights.video))
    if weights.text is not None:
        towers.append(("text", encoder.text, weights.text))
    prepared = [(module, *_prepared(tower, module, path)) for tower, module, path in towers]
    for module, values, _ in prepared:
        module.load_state_dict(values, strict=False)
    return [report for _, _, report in prepared]


def _prepared(tower: Tower, module: Any, path: str) -> tuple[Tensors, TowerReport]:
    files = read_weight_files(path)
    family = family_of(files.tensors, tower, files.source)
    parts, left_out = renamed(family, files.tensors, files.source)
    report = TowerReport(tower, family.name, files.source, left_out=left_out)
    _join_attention(parts)
    _fold_layer_scale(parts, report)
    _check_settings(parts, module.config, family, files, report)
    if tower == "video":
        values = _video_values(parts, module, report)
    else:
        values = _text_values(parts, module.config, report)
    _take_projection(values, module, report)
    own = module.state_dict()
    # Of our own weights; a tower without these parts embeds otherwise.
    for name in [name for name in values if name not in own and _EXTRA_TOKENS.match(name)]:
        report.left_out.append(name)
        values.pop(name)
    _check_tensors(values, own, family, files)
    report.taken = [name for name in own if name in values]
    report.new = [name for name in own if name not in values]
    return values, report


def _join_attention(parts: Tensors) -> None:
    """Concatenate separate queries, keys and values; a missing bias is zero."""
    for name in [name for name in parts if name.endswith("attention.q.weight")]:
        base = name.removesuffix("q.weight")
        names = [f"{base}{part}.weight" for part in "qkv"]
        if all(name in parts for name in names):  # what is missing is an error later
            weights = [parts.pop(name) for name in names]
            biases = [
                parts.pop(f"{base}{part}.bias", torch.zeros(len(weight)))
                for part, weight in zip("qkv", weights, strict=True)
            ]
            parts[f"{base}qkv.weight"] = torch.cat(weights)
            parts[f"{base}qkv.bias"] = torch.cat(biases)
    for name in [name for name in parts if name.endswith("attention.qkv.weight")]:
        parts.setdefault(name.replace("weight", "bias"), torch.zeros(len(parts[name])))


def _fold_layer_scale(parts: Tensors, report: TowerReport) -> None:
    scales = [name for name in parts if name.endswith(("scale1", "scale2"))]
    for name in scales:
        block, scale = name.rpartition(".")[0], parts.pop(name)
        layer = f"{block}.attention.output" if name.endswith("1") else f"{block}.mlp.contract"
        for end, factor in (("weight", scale[:, None]), ("bias", scale)):
            if f"{layer}.{end}" in parts:  # what is missing is an error later
                parts[f"{layer}.{end}"] = parts[f"{layer}.{end}"] * factor
    if scales:
        report.changed.append(f"folded {len(scales)} LayerScale vectors into the linear layers")


def _check_settings(
    parts: Tensors,
    config: VideoConfig | TextConfig,
    family: WeightFamily,
    files: WeightFiles,
    report: TowerReport,
) -> None:
    """Raise CheckpointError naming every setting that must differ for these weights."""
    stated = described_settings(files, family)
    wanted = _sizes(parts, config) | dict(family.layout) | stated
    wrong = {name: value for name, value in wanted.items() if getattr(config, name) != value}
    if wrong:
        tower = family.tower
        given = ", ".join(f"{tower}.{name}={_text(getattr(config, name))}" for name in wrong)
        needed = " ".join(f"{tower}.{name}={_text(value)}" for name, value in wrong.items())
        raise CheckpointError(
            f"weights.{tower}: {files.source} was recognised as {family.name}, and the model does "
            f"not fit it ({given}); set {needed}"
        )
    usual = dict(family.usual)
    if family.name.startswith("timm") and wanted["pre_norm"]:
        usual["norm_eps"] = 1e-5  # ViTs of CLIP
    if config.width % HEAD_WIDTH == 0 and not family.ours:
        usual["heads"] = config.width // HEAD_WIDTH
    for name, value in usual.items():
        own = getattr(config, name)
        if name not in stated and own != value:
            report.notes.append(
                f"{family.tower}.{name}={_text(own)}, which the weights do not tell; "
                f"{family.name} usually has {_text(value)}"
            )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sizes(parts: Tensors, config: VideoConfig | TextConfig) -> dict[str, Any]:
    """Return the settings that the shapes of the weights give."""
    layers = {int(match[1]) for match in map(_LAYER.match, parts) if match}
    found: dict[str, Any] = {"depth": len(layers)}
    hidden = parts.get("blocks.0.mlp.expand.weight")
    if hidden is not None:
        found["width"] = hidden.shape[1]
        if int(hidden.shape[1] * config.mlp_ratio) != hidden.shape[0] or (
            hidden.shape[1] != config.width
        ):
            found["mlp_ratio"] = hidden.shape[0] / hidden.shape[1]
    if isinstance(config, VideoConfig):
        found["pre_norm"] = "pre_norm.weight" in parts
        if "patch.weight" in parts:
            found["patch"] = parts["patch.weight"].shape[-1]
    else:
        found["embedding_norm"] = "embedding.norm.weight" in parts
        found["post_norm"] = "norm.weight" not in parts
        if "embedding.tokens" in parts:
            found["vocab_size"] = parts["embedding.tokens"].shape[0]
    return found


def _video_values(parts: Tensors, module: Any, report: TowerReport) -> Tensors:
    config: VideoConfig = module.config
    values = dict(parts)
    time = config.grid[0]
    if "patch.weight" in values:
        patch = values.pop("patch.weight")
        if patch.dim() != 4 or patch.shape[1] != 3:
            raise CheckpointError(
                f"weights.video: the patch embedding is {list(patch.shape)}, expected [C, 3, p, p]"
            )
        values["embedding.projection.weight"] = inflated(patch, config.tubelet)
        values["embedding.projection.bias"] = values.pop("patch.bias", torch.zeros(len(patch)))
        report.changed.append(
            f"inflated: patch embedding over video.tubelet={config.tubelet} frames (weight / "
            f"{config.tubelet} each)"
        )
        values["embedding.time_position"] = torch.zeros(time, config.width)
        report.changed.append(f"zero: {time} positions in time")
    if "positions" in values:
        _image_positions(values, config)
    if "class" in values:
        token = values.pop("class").reshape(1, -1)
        if config.pool == "class_token":
            values["class_token.tokens"] = token.repeat(config.class_tokens, 1)
        else:
            report.left_out.append("class token")
    _fit_positions(values, config, report)
    if "embedding.time_position" in parts:
        _fit_time(values, time, report)
    else:
        report.notes.append(_still_clips(module, "class_token.tokens" in values, report))
    return values


def _image_positions(values: Tensors, config: VideoConfig) -> None:
    """Add the class token's position to it; the rest are positions in space."""
    table = values.pop("positions").flatten(0, -2)
    side = math.isqrt(len(table))
    if "class" in values and side * side != len(table):
        values["class"] = values["class"].reshape(-1) + table[0]
        table = table[1:]
    values["embedding.space_position"] = table


def _fit_positions(values: Tensors, config: VideoConfig, report: TowerReport) -> None:
    table = values.get("embedding.space_position")
    if table is None:
        return
    _, height, width = config.grid
    side = math.isqrt(len(table))
    if side * side != len(table):
        raise CheckpointError(
            f"weights.video ({report.family}): {len(table)} positions in space are no square grid"
        )
    if (side, side) != (height, width):
        values["embedding.space_position"] = resized_space(table, (side, side), (height, width))
        report.changed.append(
            f"interpolated: positions in space, {side} x {side} to {height} x {width} (bicubic)"
        )


def _fit_time(values: Tensors, time: int, report: TowerReport) -> None:
    table = values.get("embedding.time_position")
    if table is not None and len(table) != time:
        values["embedding.time_position"] = resized_time(table, time, keep_ends=False)
        report.changed.append(f"interpolated: positions in time, {len(table)} to {time} (linear)")


def _still_clips(module: Any, class_token: bool, report: TowerReport) -> str:
    """Say whether a still clip gives the image model's embedding, and if not, why.

    Joint attention sees every patch once per temporal position. The softmax is that of the image
    only if every other token is there as often.
    """
    config: VideoConfig = module.config
    time = config.grid[0]
    why = None
    if module.num_groups:
        why = "group tokens take part in the attention"
    elif class_token and config.class_tokens != time:
        why = f"it has video.class_tokens={config.class_tokens}, not one for each of {time} times"
    elif not class_token and "class token" in report.left_out:
        why = "video.pool leaves out the class token"
    if why is None:
        return "a still clip gives the image model's embedding"
    return f"a still clip does not give the image model's embedding: {why}"


def _text_values(parts: Tensors, config: TextConfig, report: TowerReport) -> Tensors:
    values = dict(parts)
    table = values.pop("positions", None)
    if table is None:
        table = values.get("embedding.position")
    if table is None:
        return values
    if config.length > len(table):
        resized = resized_time(table, config.length, keep_ends=True)
        report.changed.append(
            f"interpolated: positions of tokens, {len(table)} to text.length={config.length} "
            "(linear)"
        )
    else:
        resized = table[: config.length].clone()
        if config.length < len(table):
            report.changed.append(f"shortened: positions of tokens, the first {config.length}")
    if "types" in values:
        resized = resized + values.pop("types")[0]
        report.changed.append("folded: the first token type into the positions")
    values["embedding.position"] = resized
    return values


def _take_projection(values: Tensors, module: Any, report: TowerReport) -> None:
    """Bring the projection into our form; one of another width is left out."""
    if "matrix" in values:
        values["projection.weight"] = values.pop("matrix").T.contiguous()
    weight = values.get("projection.weight")
    if weight is None:
        return
    if weight.shape != module.projection.weight.shape:
        report.notes.append(
            f"the projection gives width {weight.shape[0]}, model.embed_dim is "
            f"{module.projection.out_features}: it is left out, and ours is new"
        )
        values.pop("projection.weight")
        values.pop("projection.bias", None)
    else:
        values.setdefault("projection.bias", torch.zeros(len(weight)))


def _check_tensors(values: Tensors, own: Tensors, family: WeightFamily, files: WeightFiles) -> None:
    """Raise CheckpointError for tensors that are missing, unknown or of another shape."""
    problems = []
    missing = [name for name in own if name not in values and not _MAY_BE_NEW.match(name)]
    if missing:
        problems.append(f"they lack {listed(missing)}")
    unknown = [name for name in values if name not in own]
    if unknown:
        problems.append(f"the tower has no {listed(unknown)}")
    shapes = [
        f"{name} {list(value.shape)} (the tower's: {list(own[name].shape)})"
        for name, value in values.items()
        if name in own and value.shape != own[name].shape
    ]
    if shapes:
        problems.append(f"other shapes: {listed(shapes)}")
    if problems:
        raise CheckpointError(
            f"weights.{family.tower}: {files.source} was recognised as {family.name}, but does not "
            f"fit the tower: {'; '.join(problems)}"
        )
