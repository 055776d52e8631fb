"""What the JSON files beside the weights say of settings that the weights do not tell."""

from __future__ import annotations

from typing import Any

from svilm_fast.core.errors import CheckpointError
from svilm_fast.models.pretrained.families import WeightFamily
from svilm_fast.models.pretrained.files import WeightFiles
from svilm_fast.models.tubelet_embedding import PIXELS

_OPEN_CLIP_HEAD = 64
_FUNCTIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}


def described_settings(files: WeightFiles, family: WeightFamily) -> dict[str, Any]:
    """Return settings of the tower, without the tower's name, as far as the files name them.

    Raises CheckpointError for another type of model and for an activation that we do not have.
    """
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
        found |= _of_transformers(nested if isinstance(nested, dict) else config, files)
    if family.name.startswith("open_clip"):
        found |= _of_open_clip(files.described.get("open_clip_config.json", {}), family)
    mean = _pixel_mean(files)
    if family.tower == "video" and mean is not None:
        found["pixels"] = mean
    return found


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


def _of_open_clip(file: dict[str, Any], family: WeightFamily) -> dict[str, Any]:
    config = file.get("model_cfg")
    if not isinstance(config, dict):
        return {}
    found: dict[str, Any] = {"activation": "quick_gelu" if config.get("quick_gelu") else "gelu"}
    tower = config.get("vision_cfg" if family.tower == "video" else "text_cfg")
    if isinstance(tower, dict):
        if family.tower == "text":
            heads = tower.get("heads", 8)
        else:
            heads = int(tower.get("width", 768)) // int(tower.get("head_width", _OPEN_CLIP_HEAD))
        found["heads"] = heads
    return found


def _pixel_mean(files: WeightFiles) -> str | None:
    places = (
        files.described.get("preprocessor_config.json", {}).get("image_mean"),
        (files.described.get("config.json", {}).get("pretrained_cfg") or {}).get("mean"),
        (files.described.get("open_clip_config.json", {}).get("preprocess_cfg") or {}).get("mean"),
    )
    for mean in places:
        for name, (own, _) in PIXELS.items():
            if isinstance(mean, list) and len(mean) == len(own) and _close(mean, own):
                return name
    return None


def _close(mean: list[Any], own: tuple[float, ...]) -> bool:
    return all(
        isinstance(a, int | float) and abs(a - b) < 1e-4 for a, b in zip(mean, own, strict=True)
    )
