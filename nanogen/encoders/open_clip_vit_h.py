"""Files of OpenCLIP's ViT-H/14, as weights of `transformers.CLIPModel` for the same network.

    tensors = read_tensors(Path("HPS_v2.1_compressed.pt"))
    network = filled(config_of(tensors), renamed(tensors), where="HPS_v2.1_compressed.pt")

The two differ in names, in three matrices that OpenCLIP stacks as one (query, key, value), and in
two projections that it multiplies from the other side. Sizes are read off the weights; how wide a
head is, and that GELU is exact, they do not say: those are of ViT-H/14
(open_clip/model_configs/ViT-H-14.json).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from nanogen.errors import ConfigError, MissingExtra

IMAGE_HEAD, TEXT_HEAD = 80, 64
"""widths of a head"""
TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
STACKED = "attn.in_proj_"


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's weights by the names of transformers; a name that is not OpenCLIP's is kept, so
    that whoever fills a network with them reports it.
    """
    return {new: tensor for name in tensors for new, tensor in _places(name, tensors[name])}


def config_of(tensors: Mapping[str, Tensor]) -> Any:
    """The `transformers.CLIPConfig` of the network that these weights of OpenCLIP are for.

    ConfigError where they are of something else.
    """
    try:
        from transformers import CLIPConfig
    except ImportError as problem:
        raise MissingExtra("transformers", "pip install 'nanogen[t2i]'") from problem
    try:
        width, patch = tensors["visual.conv1.weight"].shape[::3]
        places = len(tensors["visual.positional_embedding"]) - 1
        words, text_width = tensors["token_embedding.weight"].shape
        vision = {
            "image_size": round(places**0.5) * patch,
            "patch_size": patch,
            **_tower(tensors, "visual.transformer.resblocks.", width, IMAGE_HEAD),
        }
        text = {
            "vocab_size": words,
            "max_position_embeddings": len(tensors["positional_embedding"]),
            # The last of the vocabulary ends a text.
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
            **_tower(tensors, "transformer.resblocks.", text_width, TEXT_HEAD),
        }
        shared = tensors["text_projection"].shape[1]
    except (KeyError, ValueError, IndexError) as problem:
        raise ConfigError(
            f"these are no weights of OpenCLIP's ViT-H/14: {problem} is not among them; give the "
            "published file"
        ) from problem
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared)


def _tower(tensors: Mapping[str, Tensor], prefix: str, width: int, head: int) -> dict[str, Any]:
    blocks = {
        name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)
    }
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{prefix}0.mlp.c_fc.bias"]),
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // head,
        "hidden_act": "gelu",
    }


def _places(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Where one weight of OpenCLIP goes, whole or in parts."""
    if name in TURNED:
        yield TURNED[name], tensor.T
        return
    for prefix, tower in TOWERS.items():
        if name.startswith(prefix):
            number, _, inner = name.removeprefix(prefix).partition(".")
            if inner.startswith(STACKED):
                for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                    kind = inner.removeprefix(STACKED)
                    yield f"{tower}{number}.self_attn.{part}_proj.{kind}", rows
                return
            for old, new in BLOCK.items():
                if inner.startswith(old):
                    yield f"{tower}{number}.{new}{inner.removeprefix(old)}", tensor
                    return
    yield OUTSIDE.get(name, name), tensor
