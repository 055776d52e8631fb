"""Named shapes of the op and inputs for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import normalize


def _square(batch: int, dim: int, **more: Any) -> dict[str, Any]:
    return {"videos": batch, "texts": batch, "dim": dim, **more}


CASES: dict[str, dict[str, Any]] = {
    "pairs_1024_dim_256": _square(1024, 256),
    "pairs_4096_dim_256": _square(4096, 256),
    "pairs_8192_dim_512": _square(8192, 512),
    "pairs_10007_dim_512": _square(10007, 512),
    "pairs_65536_dim_256": _square(65536, 256),
    "pairs_65536_dim_512": _square(65536, 512),
    "pairs_65536_dim_768": _square(65536, 768),
    "pairs_8192_dim_512_exclude": _square(8192, 512, pair_mode="exclude"),
    "rank_3_of_8_dim_512": {"videos": 8192, "texts": 65536, "dim": 512, "diagonal_offset": 24576},
    "pairs_65536_dim_256_2_gib": _square(65536, 256, workspace_bytes=2 << 30),
    "pairs_65536_dim_512_1_gib": _square(65536, 512, workspace_bytes=1 << 30),
    "pairs_65536_dim_512_2_gib": _square(65536, 512, workspace_bytes=2 << 30),
    "pairs_65536_dim_768_2_gib": _square(65536, 768, workspace_bytes=2 << 30),
}


def make_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `api.infonce`: correlated unit vectors, scale 1/0.07."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(rows: int) -> torch.Tensor:
        return torch.randn(rows, case["dim"], generator=generator, device=device)

    videos, texts = normalize(noise(case["videos"]), dim=1), noise(case["texts"])
    offset = case.get("diagonal_offset", 0)
    texts[offset : offset + case["videos"]] += case["dim"] ** 0.5 * videos
    inputs: dict[str, Any] = {
        "videos": videos.to(dtype),
        "texts": normalize(texts, dim=1).to(dtype),
        "scale": torch.tensor(1 / 0.07, device=device),
        "diagonal_offset": offset,
    }
    if "workspace_bytes" in case:
        inputs["workspace_bytes"] = case["workspace_bytes"]
    if "pair_mode" in case:
        inputs["pair_ids"] = torch.arange(case["videos"], device=device) // 2
        inputs["pair_mode"] = case["pair_mode"]
    return inputs
