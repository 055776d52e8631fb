"""What the files beside the weights say of settings that the weights do not tell."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from svilm_fast.core.errors import CheckpointError
from svilm_fast.models.config import TextConfig, VideoConfig
from svilm_fast.models.pretrained.families import WeightFamily
from svilm_fast.models.pretrained.files import WeightFiles
from svilm_fast.models.tubelet_embedding import PIXELS

_OPEN_CLIP_HEAD = 64
# Settings with which open_clip computes something else, and the values that our towers compute.
_OPEN_CLIP_COMPUTED: dict[str, dict[str, tuple[str, ...]]] = {
    "video": {"final_ln_after_pool": (), "act_kwargs": ()},
    "text": {"no_causal_mask": (), "pool_type": ("argmax", "eos"), "act_kwargs": ()},
}
_FUNCTIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}
# What transformers assumes where config.json names no number of heads.
_HEADS = {"clip": {"video": 12, "text": 8}, "clip_text_model": {"text": 8}}
_OTHER_HEADS = 12
# Settings of our towers that the tensors do not tell.
_OURS = ("tubelet", "heads", "pool", "activation", "norm_eps", "pixels", "causal")


def described_settings(files: WeightFiles, family: WeightFamily) -> dict[str, Any]:
    """Return settings of the tower, without the tower's name, as far as the files name them.

    Raises CheckpointError for another type of model, and for what our towers cannot compute.
    """
    if family.ours:
        return _of_ours(files, family)
    found: dict[str, Any] = {}
    config = files.described.get("config.json", {})
    kind = config.get("model_type")
    if family.types and kind is not None:
        if kind not in family.types:
            raise CheckpointError(
                f"weights.{family.tower}: the names in {files.source} are those of {family.name}, "
                f"but its config.json says model_type={kind}, which is computed differently"
            )
        nested = config.get("vision_config" if family.tower == "video" else "text_config")
        # What equals the library's default may be left out of the file.
        found = {name: family.usual[name] for name in ("activation", "norm_eps")}
        found["heads"] = _HEADS.get(kind, {}).get(family.tower, _OTHER_HEADS)
        found |= _of_transformers(nested if isinstance(nested, dict) else config, files)
    if family.name.startswith("open_clip"):
        found |= _of_open_clip(files, family)
    if family.name.startswith("timm"):
        found |= _of_timm(config)
    if family.tower == "video":
        found |= _pixels(files)
    return found


def _of_ours(files: WeightFiles, family: WeightFamily) -> dict[str, Any]:
    """Settings in the config.json of `svilm export`, or in the config.yaml of a checkpoint."""
    config = files.described.get("config.json") or files.described.get("config.yaml") or {}
    block = config.get(family.tower)
    if not isinstance(block, dict):
        return {}
    kind = VideoConfig if family.tower == "video" else TextConfig
    try:
        saved = kind.model_validate(block)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"weights.{family.tower}: the settings in {files.source} are not those of this "
            f"version: {family.tower}.{where}: {first['msg']}"
        ) from None
    return {name: getattr(saved, name) for name in _OURS if name in kind.model_fields}


def _of_transformers(config: dict[str, Any], files: WeightFiles) -> dict[str, Any]:
    found: dict[str, Any] = {}
    heads = config.get("num_attention_heads", config.get("n_heads"))
    if isinstance(heads, int):
        found["heads"] = heads
    activation = config.get("hidden_act", config.get("activation"))
    if activation is not None:
        if activation not in _FUNCTIONS:
            raise CheckpointError(
                f"{files.source}: activation {activation!r} is not one of ours (gelu, quick_gelu)"
            )
        found["activation"] = activation
    if isinstance(config.get("layer_norm_eps"), float):
        found["norm_eps"] = config["layer_norm_eps"]
    return found


def _of_open_clip(files: WeightFiles, family: WeightFamily) -> dict[str, Any]:
    config = files.described.get("open_clip_config.json", {}).get("model_cfg")
    if not isinstance(config, dict):
        return {}
    found: dict[str, Any] = {"activation": "quick_gelu" if config.get("quick_gelu") else "gelu"}
    block = "vision_cfg" if family.tower == "video" else "text_cfg"
    tower = config.get(block)
    if not isinstance(tower, dict):
        return found
    if family.tower == "text":
        found["heads"] = tower.get("heads", 8)
    else:
        width, head = tower.get("width", 768), tower.get("head_width", _OPEN_CLIP_HEAD)
        found["heads"] = int(width) // int(head)
    for name, ours in _OPEN_CLIP_COMPUTED[family.tower].items():
        value = tower.get(name)
        if value and value not in ours:
            raise CheckpointError(
                f"weights.{family.tower}: {files.source} has {block}.{name}={value!r}, which our "
                f"{family.tower} tower does not compute, so that its features would be others"
            )
    norm = tower.get("norm_kwargs")
    if isinstance(norm, dict) and isinstance(norm.get("eps"), float):
        found["norm_eps"] = norm["eps"]
    return found


def _of_timm(config: dict[str, Any]) -> dict[str, Any]:
    arguments = config.get("model_args")
    named = arguments.get("act_layer") if isinstance(arguments, dict) else None
    if named == "quick_gelu" or "quickgelu" in str(config.get("architecture", "")):
        return {"activation": "quick_gelu"}
    return {}


def _pixels(files: WeightFiles) -> dict[str, str]:
    described = files.described
    places: list[tuple[dict[str, Any], str, str]] = [
        (described.get("preprocessor_config.json", {}), "image_mean", "image_std"),
        (described.get("config.json", {}).get("pretrained_cfg") or {}, "mean", "std"),
        (described.get("open_clip_config.json", {}).get("preprocess_cfg") or {}, "mean", "std"),
    ]
    for values, mean, deviation in places:
        if not isinstance(values.get(mean), list):
            continue
        given = values[mean], values.get(deviation)
        for name, own in PIXELS.items():
            if all(
                each is None or _close(each, ours) for each, ours in zip(given, own, strict=True)
            ):
                return {"pixels": name}
        raise CheckpointError(
            f"weights.video: {files.source} was trained on pixels of mean {given[0]} and standard "
            f"deviation {given[1]}, which is none of ours ({', '.join(PIXELS)})"
        )
    return {}


def _close(given: Any, own: tuple[float, ...]) -> bool:
    return (
        isinstance(given, list)
        and len(given) == len(own)
        and all(
            isinstance(a, int | float) and abs(a - b) < 1e-4 for a, b in zip(given, own, strict=True)
        )
    )
