"""Which library weights come from, and how its names of tensors map to ours.

Names on the right are those of a tower's parameters, except for parts that are assembled later:
`patch`, `class`, `positions`, `types`, `matrix` (a projection [C, D]), `attention.q`, `.k`, `.v`
and `scale1`, `scale2` (LayerScale).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from svilm_fast.core.errors import CheckpointError

Tower = Literal["video", "text"]
Rules = tuple[tuple[str, str], ...]
SHOWN = 3


@dataclass(frozen=True)
class WeightFamily:
    """Weights of one library and architecture.

    mark: a key that all of them have. rules: patterns of whole keys and our names. left_out: keys
    that no embedding needs. layout: settings that the architecture fixes. usual: settings that the
    weights do not tell, as this family is usually trained. types: `model_type` in config.json.
    """

    name: str
    tower: Tower
    mark: str
    rules: Rules
    left_out: str
    layout: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)
    types: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return self.name.startswith("svilm_fast")

    def fits(self, keys: Iterable[str]) -> bool:
        return any(re.fullmatch(self.mark, key) for key in keys)


def _rules(prefix: str, layer: str, parts: Rules, others: Rules) -> Rules:
    """Add the prefix, layer numbers and `.weight` or `.bias` to the names of modules."""
    end, blocks = r"\.(weight|bias)", prefix + layer + r"\.(\d+)\."
    named = [(prefix + name, target) for name, target in others]
    layers = [
        (blocks + name + end, rf"blocks.\1.{target}.\2")
        if not target.startswith("scale")
        else (blocks + name, rf"blocks.\1.{target}")
        for name, target in parts
    ]
    return (*layers, *named)


def _module(name: str, target: str) -> tuple[str, str]:
    return name + r"\.(weight|bias)", rf"{target}.\1"


_MLP = (("mlp.fc1", "mlp.expand"), ("mlp.fc2", "mlp.contract"))
_SEPARATE = tuple((f"self_attn.{name}_proj", f"attention.{name}") for name in "qkv")
_OPEN_CLIP_LAYER: Rules = (
    ("ln_1", "attention_norm"),
    ("attn.out_proj", "attention.output"),
    ("ln_2", "mlp_norm"),
    ("mlp.c_fc", "mlp.expand"),
    ("mlp.c_proj", "mlp.contract"),
    (r"ls_1\.gamma", "scale1"),
    (r"ls_2\.gamma", "scale2"),
)
_CLIP_LAYER: Rules = (
    *_SEPARATE,
    ("self_attn.out_proj", "attention.output"),
    ("layer_norm1", "attention_norm"),
    ("layer_norm2", "mlp_norm"),
    *_MLP,
)
_FUSED = r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)"
_CLIP_TEXT = {"causal": True, "pool": "end", "post_norm": False, "embedding_norm": False}
_BERT = {"causal": False, "post_norm": True, "embedding_norm": True}
_CLIP_USUAL = {"activation": "quick_gelu", "norm_eps": 1e-5}
_SCALES = r"logit_scale|logit_bias"

FAMILIES = (
    WeightFamily(
        "timm ViT",
        "video",
        r"patch_embed\.proj\.weight",
        _rules(
            "",
            "blocks",
            (
                ("norm1", "attention_norm"),
                ("attn.qkv", "attention.qkv"),
                ("attn.proj", "attention.output"),
                ("norm2", "mlp_norm"),
                *_MLP,
                (r"ls1\.gamma", "scale1"),
                (r"ls2\.gamma", "scale2"),
            ),
            (
                ("cls_token", "class"),
                ("pos_embed", "positions"),
                _module(r"patch_embed\.proj", "patch"),
                _module("norm_pre", "pre_norm"),
                _module("norm", "norm"),
            ),
        ),
        r"head\..+",
        usual={"activation": "gelu", "norm_eps": 1e-6, "pixels": "half"},
    ),
    WeightFamily(
        "transformers ViT",
        "video",
        r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.weight",
        _rules(
            r"(?:vit\.)?",
            r"encoder\.layer",
            (
                *((f"attention.attention.{n}", f"attention.{n[0]}") for n in ("query", "key")),
                ("attention.attention.value", "attention.v"),
                ("attention.output.dense", "attention.output"),
                ("layernorm_before", "attention_norm"),
                ("layernorm_after", "mlp_norm"),
                ("intermediate.dense", "mlp.expand"),
                ("output.dense", "mlp.contract"),
            ),
            (
                (r"embeddings\.cls_token", "class"),
                (r"embeddings\.position_embeddings", "positions"),
                _module(r"embeddings\.patch_embeddings\.projection", "patch"),
                _module("layernorm", "norm"),
            ),
        ),
        r"(?:vit\.)?(?:pooler\..+|embeddings\.mask_token)|(?:classifier|decoder)\..+",
        layout={"pre_norm": False},
        usual={"activation": "gelu", "norm_eps": 1e-12, "pixels": "half"},
        types=("vit",),
    ),
    WeightFamily(
        "open_clip ViT",
        "video",
        r"visual\.conv1\.weight",
        (
            (r"visual\." + _FUSED, r"blocks.\1.attention.qkv.\2"),
            *_rules(
                r"visual\.",
                r"transformer\.resblocks",
                _OPEN_CLIP_LAYER,
                (
                    ("class_embedding", "class"),
                    ("positional_embedding", "positions"),
                    (r"conv1\.weight", "patch.weight"),
                    _module("ln_pre", "pre_norm"),
                    _module("ln_post", "norm"),
                    ("proj", "matrix"),
                ),
            ),
        ),
        rf"{_SCALES}|(?:text\.)?(?:transformer|token_embedding|ln_final|attn_mask)(?:\..+)?|"
        r"(?:text\.)?(?:positional_embedding|text_projection(?:\..+)?|cls_emb)",
        usual=_CLIP_USUAL | {"pixels": "clip"},
    ),
    WeightFamily(
        "transformers CLIP vision",
        "video",
        r"vision_model\.embeddings\.patch_embedding\.weight",
        (
            ("visual_projection.weight", "projection.weight"),
            *_rules(
                r"vision_model\.",
                r"encoder\.layers",
                _CLIP_LAYER,
                (
                    (r"embeddings\.class_embedding", "class"),
                    (r"embeddings\.position_embedding\.weight", "positions"),
                    (r"embeddings\.patch_embedding\.weight", "patch.weight"),
                    _module("pre_layrnorm", "pre_norm"),
                    _module("post_layernorm", "norm"),
                ),
            ),
        ),
        rf"{_SCALES}|text_model\..+|text_projection\.weight|classifier\..+|.+\.position_ids",
        layout={"pre_norm": True},
        usual=_CLIP_USUAL | {"pixels": "clip"},
        types=("clip", "clip_vision_model"),
    ),
    WeightFamily(
        "open_clip text",
        "text",
        r"(?:text\.)?token_embedding\.weight",
        (
            (r"(?:text\.)?" + _FUSED, r"blocks.\1.attention.qkv.\2"),
            *_rules(
                r"(?:text\.)?",
                r"transformer\.resblocks",
                _OPEN_CLIP_LAYER,
                (
                    (r"token_embedding\.weight", "embedding.tokens"),
                    ("positional_embedding", "positions"),
                    _module("ln_final", "norm"),
                    ("text_projection", "matrix"),
                    _module("text_projection", "projection"),
                ),
            ),
        ),
        rf"{_SCALES}|visual\..+|(?:text\.)?attn_mask",
        layout=_CLIP_TEXT,
        usual=_CLIP_USUAL,
    ),
    WeightFamily(
        "transformers CLIP text",
        "text",
        r"text_model\.embeddings\.token_embedding\.weight",
        (
            ("text_projection.weight", "projection.weight"),
            *_rules(
                r"text_model\.",
                r"encoder\.layers",
                _CLIP_LAYER,
                (
                    (r"embeddings\.token_embedding\.weight", "embedding.tokens"),
                    (r"embeddings\.position_embedding\.weight", "positions"),
                    _module("final_layer_norm", "norm"),
                ),
            ),
        ),
        rf"{_SCALES}|vision_model\..+|visual_projection\.weight|.+\.position_ids",
        layout=_CLIP_TEXT,
        usual=_CLIP_USUAL,
        types=("clip", "clip_text_model"),
    ),
    WeightFamily(
        "transformers BERT",
        "text",
        r"(?:bert\.)?embeddings\.token_type_embeddings\.weight",
        _rules(
            r"(?:bert\.)?",
            r"encoder\.layer",
            (
                *((f"attention.self.{n}", f"attention.{n[0]}") for n in ("query", "key", "value")),
                ("attention.output.dense", "attention.output"),
                ("attention.output.LayerNorm", "attention_norm"),
                ("intermediate.dense", "mlp.expand"),
                ("output.dense", "mlp.contract"),
                ("output.LayerNorm", "mlp_norm"),
            ),
            (
                (r"embeddings\.word_embeddings\.weight", "embedding.tokens"),
                (r"embeddings\.position_embeddings\.weight", "positions"),
                (r"embeddings\.token_type_embeddings\.weight", "types"),
                _module(r"embeddings\.LayerNorm", "embedding.norm"),
            ),
        ),
        r"(?:bert\.)?(?:pooler\..+|embeddings\.position_ids)|(?:cls|classifier|qa_outputs)\..+",
        layout=_BERT,
        usual={"activation": "gelu", "norm_eps": 1e-12},
        types=("bert",),
    ),
    WeightFamily(
        "transformers DistilBERT",
        "text",
        r"(?:distilbert\.)?transformer\.layer\.0\.attention\.q_lin\.weight",
        _rules(
            r"(?:distilbert\.)?",
            r"transformer\.layer",
            (
                *((f"attention.{name}_lin", f"attention.{name}") for name in "qkv"),
                ("attention.out_lin", "attention.output"),
                ("sa_layer_norm", "attention_norm"),
                ("ffn.lin1", "mlp.expand"),
                ("ffn.lin2", "mlp.contract"),
                ("output_layer_norm", "mlp_norm"),
            ),
            (
                (r"embeddings\.word_embeddings\.weight", "embedding.tokens"),
                (r"embeddings\.position_embeddings\.weight", "positions"),
                _module(r"embeddings\.LayerNorm", "embedding.norm"),
            ),
        ),
        r"(?:pre_classifier|classifier|qa_outputs|vocab_\w+)\..+|.+\.position_ids",
        layout=_BERT,
        usual={"activation": "gelu", "norm_eps": 1e-12},
        types=("distilbert",),
    ),
    WeightFamily(
        "svilm_fast video",
        "video",
        # An exported model is the encoder alone.
        r"(?:encoder\.)?video\.embedding\.space_position",
        ((r"(?:encoder\.)?video\.(.+)", r"\1"),),
        r"(?!(?:encoder\.)?video\.).+",
    ),
    WeightFamily(
        "svilm_fast text",
        "text",
        r"(?:encoder\.)?text\.embedding\.position",
        ((r"(?:encoder\.)?text\.(.+)", r"\1"),),
        r"(?!(?:encoder\.)?text\.).+",
    ),
)


def family_of(keys: Iterable[str], tower: Tower, source: Path) -> WeightFamily:
    """Return the family of a tower's weights; raises CheckpointError if none is recognised."""
    names = list(keys)
    for family in FAMILIES:
        if family.tower == tower and family.fits(names):
            return family
    known = ", ".join(family.name for family in FAMILIES if family.tower == tower)
    others = [family.name for family in FAMILIES if family.fits(names)]
    what = f"they are those of {others[0]}" if others else f"keys begin with {listed(names)}"
    raise CheckpointError(
        f"weights.{tower}: nothing in {source} is recognised as weights of a {tower} tower "
        f"({what}); known are {known}"
    )


def renamed(
    family: WeightFamily, tensors: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names, float32, and the keys that are left out.

    Raises CheckpointError for tensors of a part that our encoder does not have.
    """
    found: dict[str, Tensor] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    for key, value in tensors.items():
        # Older files of BERT name a norm's parameters so.
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"(Norm)\.beta$", r"\1.bias", key))
        name = name if "Norm." in name else key
        for pattern, target in family.rules:
            match = re.fullmatch(pattern, name)
            if match:
                found[match.expand(target)] = value.float() if value.is_floating_point() else value
                break
        else:
            (left_out if re.fullmatch(family.left_out, key) else unknown).append(key)
    if unknown:
        raise CheckpointError(
            f"weights.{family.tower}: {source} was recognised as {family.name}, but has "
            f"{listed(unknown)}, which our encoder has no part for, so that its features would "
            "be others"
        )
    return found, left_out


def listed(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
