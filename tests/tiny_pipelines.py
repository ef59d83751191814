"""Tiny random pipelines of diffusers in their real format.

folder = write_pipeline(tmp_path / "sd", "StableDiffusionPipeline")    # or one more of KINDS
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_contrastive import clip_vocabulary

WIDTH = 32
SIDE = 16
"""pixels of an image"""


def stable_diffusion() -> Any:
    """A UNet under a solver that adds noise in every step."""
    import diffusers

    network = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return diffusers.StableDiffusionPipeline(
        vae=_autoencoder(4),
        text_encoder=_text_encoder("CLIPTextModel"),
        tokenizer=_tokenizer(),
        unet=network,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3() -> Any:
    """A flow through a transformer, without the largest of its three text encoders."""
    import diffusers

    network = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        vae=_autoencoder(8),
        text_encoder=_text_encoder("CLIPTextModelWithProjection"),
        text_encoder_2=_text_encoder("CLIPTextModelWithProjection"),
        text_encoder_3=None,
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        tokenizer_3=None,
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        image_encoder=None,
        feature_extractor=None,
    )


def dit() -> Any:
    """Classes in place of captions."""
    import diffusers

    network = diffusers.DiTTransformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
    )
    scheduler = diffusers.DDIMScheduler()
    return diffusers.DiTPipeline(transformer=network, vae=_autoencoder(4), scheduler=scheduler)


KINDS: dict[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "DiTPipeline": dit,
}


def write_pipeline(folder: Path, kind: str) -> Path:
    """The folder of a random pipeline."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        KINDS[kind]().save_pretrained(folder)
    return folder


def _autoencoder(channels: int) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _text_encoder(name: str) -> Any:
    import transformers

    vocabulary = clip_vocabulary()
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    network = getattr(transformers, name)(config)
    with torch.no_grad():
        # So that captions do not all look alike.
        for weight in network.parameters():
            weight.mul_(3)
    return network


def _tokenizer() -> Any:
    import transformers

    return transformers.CLIPTokenizer(vocab=clip_vocabulary(), merges=[], model_max_length=77)
