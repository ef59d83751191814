"""ConvNeXt V2: a convolutional network, whose last map is 7 x 7 for images of 256 px.

    convnextv2-cnn-base     a target of alignment and of metrics; too few tokens for a latent space

Woo et al. 2023 (arXiv 2301.00808). The map is read before the final norm, which is for its mean.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nanogen.encoders.huggingface import full_name, load, side_of, take_norm
from nanogen.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from nanogen.encoders.vision import EncoderRow, Options, VisionEncoder, VisionFeatures
from nanogen.fingerprint import digest_of_module
from nanogen.registry import register

STRIDE = 32
"""pixels a side of one place of the last map"""
UNUSED = ("classifier.",)


class ConvNextV2Encoder(VisionEncoder):
    def __init__(self, name: str, network: Any, preprocess: Preprocess) -> None:
        """`network` is a ConvNextV2Model of transformers without its final norm."""
        super().__init__()
        self.name = name
        self.width = network.config.hidden_sizes[-1]
        self.grid = preprocess.side // STRIDE
        self.network = network
        self.preprocess = preprocess
        self.fingerprint = f"{name}/{preprocess.fingerprint}/{digest_of_module(network)}"
        self.requires_grad_(False)
        self.train(False)

    def forward(self, images: Tensor) -> VisionFeatures:
        """The last map, place by place; there is no class token."""
        places = self.network(pixel_values=self.preprocess(images)).last_hidden_state
        return VisionFeatures(places.flatten(2).transpose(1, 2))


def _row(size: str, width: int, parameters: int) -> EncoderRow:
    return EncoderRow(
        name=f"convnextv2-cnn-{size}",
        hub=f"facebook/convnextv2-{size}-22k-224",
        # The authors' own; the copies on the hub say Apache-2.0.
        licence="CC-BY-NC-4.0",
        width=width,
        patch=STRIDE,
        side=224,
        parameters=parameters,
    )


@register(
    "encoder",
    "convnextv2",
    summary="ConvNeXt V2: convolutional, 7 x 7 places",
    needs="pip install 'nanogen[latents]', and the model",
)
class ConvNextV2:
    rows = (
        _row("nano", 640, 14_982_800),
        _row("tiny", 768, 27_866_496),
        _row("base", 1024, 87_692_800),
        _row("large", 1536, 196_419_840),
    )
    options: tuple[str, ...] = ()

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> ConvNextV2Encoder:
        side = side_of(row, image_size)
        network = load(row, "ConvNextV2Model", path, UNUSED)
        take_norm(network, "layernorm", affine=True)
        preprocess = Preprocess(side, IMAGENET_MEAN, IMAGENET_STD, "bilinear")
        return ConvNextV2Encoder(full_name(row, options), network, preprocess)
