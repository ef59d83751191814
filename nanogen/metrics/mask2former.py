"""The detector of GenEval: Mask2Former with a small Swin Transformer, for the 80 classes of COCO.

    detector = Mask2Former(find(MASK2FORMER).path, torch.device("cuda"), "fp32", OFFICIAL)
    for found in detector.detect(images):        # uint8 [B, 3, H, W]
        ...                                      # the instances of one image

Cheng et al. 2022 (arXiv 2112.01527). The network is that of transformers; what is done to images
before it (exactly as transformers does) and to its outputs (not as transformers does: its own
post-processing cuts masks out at 384 x 384 pixels) is here.

GenEval was published with weights that OpenMMLab trained, in mmdetection. These are the weights of
the authors, as in DiffusionBench. Two other deviations from mmdetection have no effect on square
images, or hardly any: it pads to multiples of 32 px instead of stretching, and its resize does not
widen the filter where it shrinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nanogen import hub
from nanogen.encoders.huggingface import quiet
from nanogen.encoders.pillow_resize import BILINEAR, resize
from nanogen.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD
from nanogen.errors import ConfigError, MissingExtra
from nanogen.frozen import frozen
from nanogen.metrics.instances import Compat, Instance, Sizes, instances
from nanogen.prompts.geneval import NAMES
from nanogen.store import Asset

MASK2FORMER = Asset(
    "mask2former-swin-small-coco-instance",
    "Mask2Former, small Swin, instances of COCO",
    "MIT",
    hub="facebook/mask2former-swin-small-coco-instance",
    files=("config.json", "model.safetensors"),
    size="275 MB",
)
MULTIPLE = 32
"""of pixels a side, which the strides of the network divide"""
AT_ONCE = 8
"""images on a GPU. On a CPU one image is as quick"""
RENAMED = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
}
"""classes that files of weights call otherwise than GenEval"""
RECOMPUTED = ".relative_position_index"
"""ends the names of tensors that files hold beside the weights, and that no version needs"""


class Mask2Former:
    """The network, frozen, on one device.

    It is always fed the same number of images at once, with some of them twice where too few are
    left. So what it says of an image does not depend on the others.
    """

    shortest, longest = 800, 1333
    """pixels of a side: the shortest gets so many, or fewer so that the longest gets no more"""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        compat: Compat,
    ) -> None:
        """`folder` holds config.json and model.safetensors; ConfigError where it does not, or they
        are of another model.
        """
        self.network = frozen(_opened(folder)).to(device)
        self.device = device
        self.compat = compat
        self.at_once = AT_ONCE if device.type == "cuda" else 1
        self._half = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
        )

    @torch.no_grad()
    def detect(self, images: Tensor) -> Iterator[list[Instance]]:
        """The instances of each image, uint8 [B, 3, H, W] on any device: one image after the other,
        as masks are large.
        """
        height, width = images.shape[-2:]
        network = fed_size(height, width, self.shortest, self.longest)
        sizes = Sizes(network, (height, width))
        for classes, masks in self._logits(images, network):
            yield instances(classes, masks, sizes, NAMES, self.compat)

    def _logits(self, images: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each image the logits of classes [Q, K + 1] and of masks [Q, h, w]."""
        for part in images.split(self.at_once):
            again = part[:1].expand(self.at_once - len(part), -1, -1, -1)
            fed = preprocessed(torch.cat([part, again]).to(self.device), size)
            with self._half:
                found = self.network(pixel_values=fed)
            for row in range(len(part)):
                yield found.class_queries_logits[row], found.masks_queries_logits[row]


def fed_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width that the network is fed for an image: its proportions are kept but for
    rounding up to a multiple of 32 px.
    """
    small, large = sorted((height, width))
    limited = large / small * shortest > longest
    exact = longest * small / large if limited else shortest
    side = round(exact)
    if side == small:
        return _raised(height), _raised(width)
    # As in transformers: the shortest side is rounded, the other one, of the exact value, cut off.
    tall, wide = (side if n == small else int(exact * n / small) for n in (height, width))
    return _raised(tall), _raised(wide)


def _raised(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE


def preprocessed(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, *size]: Pillow's bilinear filter on bytes, then the mean
    and standard deviation of ImageNet.
    """
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (resize(images, size, BILINEAR) / 255 - mean) / std


def _opened(folder: Path) -> Any:
    """The network of a folder, in float32 on the CPU, with GenEval's classes in their order."""
    try:
        from transformers import Mask2FormerForUniversalSegmentation
    except ImportError as problem:
        raise MissingExtra("transformers", "pip install 'nanogen[t2i]'") from problem
    kind: Any = Mask2FormerForUniversalSegmentation
    try:
        with quiet():
            network, found = kind.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                use_safetensors=True,
                # Not to ignore them, but to hear which they are.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as problem:  # a foreign file can break a constructor in any way
        why = hub.reason(problem)
        raise ConfigError(f"{folder} holds no Mask2Former: {why}; {hub.ANEW}") from problem
    _check(network.config, found, folder)
    return network


def _check(config: Any, found: Any, folder: Path) -> None:
    """ConfigError unless the files held every weight and no others, for these classes."""
    troubles = {
        "missing": set(found["missing_keys"]),
        "misshapen": {str(key) for key, *_ in found["mismatched_keys"]},
        "unknown": {key for key in found["unexpected_keys"] if not key.endswith(RECOMPUTED)},
    }
    for trouble, keys in troubles.items():
        if keys:
            raise ConfigError(
                f"weights in {folder} do not fit its config.json: {len(keys)} {trouble}, such as "
                f"{min(keys)}; {hub.ANEW}"
            )
    names = [config.id2label.get(index, "") for index in range(config.num_labels)]
    names = [RENAMED.get(name, name) for name in names]
    if names != list(NAMES):
        wrong = [name for name in names if name not in NAMES] or ["another order"]
        raise ConfigError(
            f"{folder} detects {len(names)} classes, not the {len(NAMES)} of GenEval (such as "
            f"{wrong[0]!r}); give the folder of {MASK2FORMER.hub}"
        )
