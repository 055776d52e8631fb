"""Plain image and text transformers with the tensor names of other libraries, in few lines each.

They are written from the architectures' definitions and share no code with `svilm_fast.models`, so
that the key maps are tested where the libraries are not installed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEADS, DEPTH, HIDDEN, PATCH, SIDE, EMBED = 24, 3, 2, 96, 4, 4, 8
VOCABULARY, LENGTH = 60, 12
TENSORS = dict[str, Tensor]


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> TENSORS:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def norm(x: Tensor, w: TENSORS, name: str, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: TENSORS, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def quick(x: Tensor) -> Tensor:
    return x / (1 + (-1.702 * x).exp())


def exact(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """[b, L, C] each; allowed bool [b or 1, L, L]."""
    mixed = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(WIDTH // HEADS)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        mixed.append(logits.softmax(-1) @ v[..., part])
    return torch.cat(mixed, -1)


def patches(image: Tensor, w: TENSORS, name: str) -> Tensor:
    bias = w.get(f"{name}.bias")
    return F.conv2d(image, w[f"{name}.weight"], bias, stride=PATCH).flatten(2).transpose(1, 2)


def layer_shapes(layer: str, names: dict[str, tuple[int, int] | int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the modules of all layers: (out, in) of a linear layer, the width of a norm."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(DEPTH):
        for name, size in names.items():
            key = f"{layer.format(number)}.{name}"
            shapes[f"{key}.weight"] = size if isinstance(size, tuple) else (size,)
            shapes[f"{key}.bias"] = (size[0] if isinstance(size, tuple) else size,)
    return shapes


MLP = {"mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN)}
SQUARE = (WIDTH, WIDTH)


class TimmViT:
    eps, pixels = 1e-6, "half"

    def __init__(self, *, class_token: bool = True, side: int = SIDE, scale: bool = False) -> None:
        self.class_token = class_token
        shapes: dict[str, tuple[int, ...]] = {
            "pos_embed": (1, side * side + class_token, WIDTH),
            "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
            "patch_embed.proj.bias": (WIDTH,),
            "norm.weight": (WIDTH,),
            "norm.bias": (WIDTH,),
            "head.weight": (10, WIDTH),
            "head.bias": (10,),
        }
        if class_token:
            shapes["cls_token"] = (1, 1, WIDTH)
        names: dict = {"norm1": WIDTH, "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": SQUARE}
        shapes |= layer_shapes("blocks.{}", names | {"norm2": WIDTH} | MLP)
        if scale:
            for number in range(DEPTH):
                shapes |= {f"blocks.{number}.ls{n}.gamma": (WIDTH,) for n in (1, 2)}
        self.tensors = random_tensors(shapes)

    def __call__(self, image: Tensor) -> Tensor:
        w = self.tensors
        x = patches(image, w, "patch_embed.proj")
        if self.class_token:
            x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + w["pos_embed"]
        for i in range(DEPTH):
            b = f"blocks.{i}"
            q, k, v = linear(norm(x, w, f"{b}.norm1", self.eps), w, f"{b}.attn.qkv").chunk(3, -1)
            mixed = linear(attention(q, k, v), w, f"{b}.attn.proj")
            x = x + mixed * w.get(f"{b}.ls1.gamma", torch.ones(1))
            hidden = exact(linear(norm(x, w, f"{b}.norm2", self.eps), w, f"{b}.mlp.fc1"))
            x = x + linear(hidden, w, f"{b}.mlp.fc2") * w.get(f"{b}.ls2.gamma", torch.ones(1))
        x = norm(x, w, "norm", self.eps)
        return x[:, 0] if self.class_token else x.mean(1)


class TransformersViT:
    eps, pixels = 1e-12, "half"

    def __init__(self, prefix: str = "vit.") -> None:
        self.prefix = prefix
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.cls_token": (1, 1, WIDTH),
            "embeddings.position_embeddings": (1, SIDE * SIDE + 1, WIDTH),
            "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
            "embeddings.patch_embeddings.projection.bias": (WIDTH,),
            "layernorm.weight": (WIDTH,),
            "layernorm.bias": (WIDTH,),
            "pooler.dense.weight": SQUARE,
            "pooler.dense.bias": (WIDTH,),
        }
        names: dict = {f"attention.attention.{n}": SQUARE for n in ("query", "key", "value")}
        names |= {"attention.output.dense": SQUARE, "intermediate.dense": (HIDDEN, WIDTH)}
        names |= {"output.dense": (WIDTH, HIDDEN), "layernorm_before": WIDTH}
        shapes |= layer_shapes("encoder.layer.{}", names | {"layernorm_after": WIDTH})
        self.plain = random_tensors(shapes)
        self.tensors = {prefix + name: value for name, value in self.plain.items()}

    def __call__(self, image: Tensor) -> Tensor:
        w = self.plain
        x = patches(image, w, "embeddings.patch_embeddings.projection")
        x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + w["embeddings.position_embeddings"]
        for i in range(DEPTH):
            b = f"encoder.layer.{i}"
            y = norm(x, w, f"{b}.layernorm_before", self.eps)
            q, k, v = (
                linear(y, w, f"{b}.attention.attention.{n}") for n in ("query", "key", "value")
            )
            x = x + linear(attention(q, k, v), w, f"{b}.attention.output.dense")
            y = norm(x, w, f"{b}.layernorm_after", self.eps)
            y = exact(linear(y, w, f"{b}.intermediate.dense"))
            x = x + linear(y, w, f"{b}.output.dense")
        return norm(x, w, "layernorm", self.eps)[:, 0]


class OpenClip:
    """Both towers: `image` and `text`; text ends at the largest token, as in open_clip."""

    eps, pixels = 1e-5, "clip"

    def __init__(self, text_prefix: str = "") -> None:
        names: dict = {"ln_1": WIDTH, "attn.out_proj": SQUARE, "ln_2": WIDTH}
        names |= {"mlp.c_fc": (HIDDEN, WIDTH), "mlp.c_proj": (WIDTH, HIDDEN)}
        visual: dict[str, tuple[int, ...]] = {
            "class_embedding": (WIDTH,),
            "positional_embedding": (SIDE * SIDE + 1, WIDTH),
            "conv1.weight": (WIDTH, 3, PATCH, PATCH),
            "proj": (WIDTH, EMBED),
        }
        text: dict[str, tuple[int, ...]] = {
            "positional_embedding": (LENGTH, WIDTH),
            "token_embedding.weight": (VOCABULARY, WIDTH),
            "text_projection": (WIDTH, EMBED),
        }
        for shapes, norms in ((visual, ("ln_pre", "ln_post")), (text, ("ln_final",))):
            shapes |= layer_shapes("transformer.resblocks.{}", names)
            for i in range(DEPTH):
                shapes[f"transformer.resblocks.{i}.attn.in_proj_weight"] = (3 * WIDTH, WIDTH)
                shapes[f"transformer.resblocks.{i}.attn.in_proj_bias"] = (3 * WIDTH,)
            for name in norms:
                shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
        self.visual, self.words = random_tensors(visual), random_tensors(text, 1)
        self.tensors = {f"visual.{name}": value for name, value in self.visual.items()}
        self.tensors |= {text_prefix + name: value for name, value in self.words.items()}
        self.tensors["logit_scale"] = torch.tensor(2.6)

    def _layers(self, x: Tensor, w: TENSORS, allowed: Tensor | None) -> Tensor:
        for i in range(DEPTH):
            b = f"transformer.resblocks.{i}"
            y = norm(x, w, f"{b}.ln_1", self.eps)
            mixed = y @ w[f"{b}.attn.in_proj_weight"].T + w[f"{b}.attn.in_proj_bias"]
            q, k, v = mixed.chunk(3, -1)
            x = x + linear(attention(q, k, v, allowed), w, f"{b}.attn.out_proj")
            y = quick(linear(norm(x, w, f"{b}.ln_2", self.eps), w, f"{b}.mlp.c_fc"))
            x = x + linear(y, w, f"{b}.mlp.c_proj")
        return x

    def __call__(self, image: Tensor) -> Tensor:
        w = self.visual
        x = patches(image, w, "conv1")
        x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1)
        x = norm(x + w["positional_embedding"], w, "ln_pre", self.eps)
        return norm(self._layers(x, w, None), w, "ln_post", self.eps)[:, 0]

    def image_embedding(self, image: Tensor) -> Tensor:
        return F.normalize(self(image) @ self.visual["proj"], dim=-1)

    def text_embedding(self, tokens: Tensor) -> Tensor:
        w, length = self.words, tokens.shape[1]
        x = w["token_embedding.weight"][tokens] + w["positional_embedding"][:length]
        x = self._layers(x, w, torch.ones(1, length, length, dtype=torch.bool).tril())
        x = norm(x, w, "ln_final", self.eps)[torch.arange(len(x)), tokens.argmax(1)]
        return F.normalize(x @ w["text_projection"], dim=-1)


def as_transformers_clip(model: OpenClip) -> TENSORS:
    """The same weights under the names of transformers' CLIPModel."""
    renamed: TENSORS = {"logit_scale": model.tensors["logit_scale"]}
    places = (
        ("vision_model", model.visual, {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}),
        ("text_model", model.words, {"ln_final": "final_layer_norm"}),
    )
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    inner |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    whole = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "token_embedding.weight": "embeddings.token_embedding.weight",
    }
    for tower, tensors, norms in places:
        for name, value in tensors.items():
            head, _, end = name.rpartition(".")
            if name in whole:
                renamed[f"{tower}.{whole[name]}"] = value
            elif name in ("proj", "text_projection"):
                key = "visual_projection" if name == "proj" else name
                renamed[f"{key}.weight"] = value.T.contiguous()
            elif head in norms:
                renamed[f"{tower}.{norms[head]}.{end}"] = value
            else:
                number, _, part = name.removeprefix("transformer.resblocks.").partition(".")
                layer = f"{tower}.encoder.layers.{number}"
                if "in_proj" in part:
                    kind = part.rpartition("_")[2]
                    for letter, piece in zip("qkv", value.chunk(3), strict=True):
                        renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = piece.clone()
                else:
                    renamed[f"{layer}.{inner[part.rpartition('.')[0]]}.{end}"] = value
    return renamed


class Bert:
    eps = 1e-12

    def __init__(self, prefix: str = "bert.", *, legacy_norms: bool = False) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
            "embeddings.position_embeddings.weight": (LENGTH, WIDTH),
            "embeddings.token_type_embeddings.weight": (2, WIDTH),
            "embeddings.LayerNorm.weight": (WIDTH,),
            "embeddings.LayerNorm.bias": (WIDTH,),
            "pooler.dense.weight": SQUARE,
            "pooler.dense.bias": (WIDTH,),
        }
        names: dict = {f"attention.self.{n}": SQUARE for n in ("query", "key", "value")}
        names |= {"attention.output.dense": SQUARE, "attention.output.LayerNorm": WIDTH}
        names |= {"intermediate.dense": (HIDDEN, WIDTH), "output.dense": (WIDTH, HIDDEN)}
        shapes |= layer_shapes("encoder.layer.{}", names | {"output.LayerNorm": WIDTH})
        self.plain = random_tensors(shapes)
        self.tensors = {prefix + name: value for name, value in self.plain.items()}
        self.tensors["cls.predictions.bias"] = torch.zeros(VOCABULARY)
        if legacy_norms:
            self.tensors = {
                name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                    "LayerNorm.bias", "LayerNorm.beta"
                ): value
                for name, value in self.tensors.items()
            }

    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        w, length = self.plain, tokens.shape[1]
        x = w["embeddings.word_embeddings.weight"][tokens]
        x = x + w["embeddings.position_embeddings.weight"][:length]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        x = norm(x, w, "embeddings.LayerNorm", self.eps)
        for i in range(DEPTH):
            b = f"encoder.layer.{i}"
            q, k, v = (linear(x, w, f"{b}.attention.self.{n}") for n in ("query", "key", "value"))
            mixed = attention(q, k, v, mask[:, None, :])
            mixed = linear(mixed, w, f"{b}.attention.output.dense")
            x = norm(x + mixed, w, f"{b}.attention.output.LayerNorm", self.eps)
            y = linear(exact(linear(x, w, f"{b}.intermediate.dense")), w, f"{b}.output.dense")
            x = norm(x + y, w, f"{b}.output.LayerNorm", self.eps)
        return x[:, 0]
