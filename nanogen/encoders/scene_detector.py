"""A small detector of the animals in composed scenes: which class, how sure, and where.

* Anchor-free, one grid: every 4 x 4 cell of a 40 x 40 image says with one softmax whether it lies
  at the centre of an object and of which class (as FCOS, Tian et al. 2019, with centre sampling;
  the softmax over classes and background makes a score a probability), and how far the four sides
  of the box are.
* Colour-blind: it reads only the ink, 1 - min(R, G, B), which is the opacity of a saturated tint on
  white. So it cannot learn that some colour is some animal.
* Trained by `scripts/train_scene_detector.py` on scenes of the training silhouettes alone; frozen
  here.

Cells: G = 10 along each axis, K classes. Boxes are (xmin, ymin, xmax, ymax) in pixels of the image
given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from nanogen.errors import DataError
from nanogen.metrics.geneval_rules import Detection
from nanogen.registry import register
from nanogen.types import to_float

WEIGHTS = Path(__file__).parent.parent / "assets" / "scene_detector.safetensors"
SIZE = 40
STRIDE = 4
GRID = SIZE // STRIDE
LEAST_SCORE = 0.05
"""detections below are not reported; every threshold of the rules lies far above"""
MOST_OVERLAP = 0.4
"""of two boxes whose intersection over union is above, the one with the better centre is kept"""


class SceneNetwork(nn.Module):
    """The trainable part: ink to class logits and box sides for each cell."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _convolution(1, 48, kernel=5, stride=2),
            _Residual(48),
            _convolution(48, 96, stride=2),
            _Residual(96),
            _Residual(96),
        )
        self.classes = nn.Conv2d(96, classes + 1, 1)
        self.sides = nn.Conv2d(96, 4, 1)

    def forward(self, ink: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, 40, 40] -> logits [B, 1 + K, G, G], background first, and the distances in pixels
        from the middle of the cell to the left, top, right and bottom of the box, [B, 4, G, G]."""
        hidden = self.trunk(ink)
        return self.classes(hidden), functional.softplus(self.sides(hidden)) * STRIDE


@register("network", "scene-detector", summary="own detector of animals in composed scenes")
class SceneDetector(nn.Module):
    """The trained detector, frozen in eval mode."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        super().__init__()
        self.weights = weights
        try:
            with safe_open(weights, framework="pt") as file:
                self.facts: dict[str, str] = file.metadata()
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"the scene detector {weights} is missing or broken ({error}); install nanogen "
                "again, or run scripts/train_scene_detector.py"
            ) from error
        self.names = tuple(self.facts["classes"].split(","))
        self.counting_threshold = float(self.facts["counting_threshold"])
        self.network = SceneNetwork(len(self.names))
        self.network.load_state_dict(tensors)
        self.requires_grad_(False).train(False)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights' file."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    def train(self, mode: bool = True) -> SceneDetector:
        """Stays in eval mode whatever `mode` says."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W], H = W -> `scores` [B, 1 + K, G, G], the probability of background and
        of each class at each cell, and `boxes` [B, 4, G, G] in pixels of `images`."""
        size = images.shape[-1]
        pixels = to_float(images)
        if size != SIZE:
            pixels = functional.interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True)
        logits, sides = self.network(ink(pixels))
        return {"scores": logits.softmax(1), "boxes": boxes_from(sides) * (size / SIZE)}

    def decode(self, features: Mapping[str, Tensor]) -> list[list[Detection]]:
        """What `forward` returned -> the detections of each image, best first.

        Cells are suppressed by cells that are surer of an object and have nearly the same box. A
        cell that stays reports each class above `LEAST_SCORE`, so two classes can share one
        doubtful object.
        """
        scores = features["scores"].flatten(2).transpose(1, 2).cpu()  # [B, G G, 1 + K]
        boxes = features["boxes"].flatten(2).transpose(1, 2).cpu()  # [B, G G, 4]
        order = scores[..., 0].argsort(dim=1, stable=True)  # least background first
        scores = scores.gather(1, order[..., None].expand_as(scores))
        boxes = boxes.gather(1, order[..., None].expand_as(boxes))
        keep = _survivors(boxes)[..., None] & (scores[..., 1:] > LEAST_SCORE)
        found: list[list[Detection]] = [[] for _ in scores]
        for image, cell, name in keep.nonzero().tolist():
            score = float(scores[image, cell, name + 1])
            xmin, ymin, xmax, ymax = boxes[image, cell].tolist()
            found[image].append(Detection(self.names[name], score, (xmin, ymin, xmax, ymax)))
        return [sorted(detections, key=lambda one: -one.score) for detections in found]

    def detect(self, images: Tensor) -> list[list[Detection]]:
        """uint8 [B, 3, H, W], H = W -> the detections of each image, best first."""
        return self.decode(self(images))


def ink(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 1, H, W]: 0 on white, 1 where one of the channels is empty."""
    return 1 - pixels.amin(dim=1, keepdim=True)


def middles(device: torch.device | None = None) -> Tensor:
    """[2, G, G]: x and y of the middle of each cell, in pixels."""
    line = (torch.arange(GRID, device=device) + 0.5) * STRIDE
    return torch.stack(torch.meshgrid(line, line, indexing="xy"))


def boxes_from(sides: Tensor) -> Tensor:
    """Distances to left, top, right and bottom [B, 4, G, G] -> boxes [B, 4, G, G], cut at the
    canvas."""
    middle = middles(sides.device)
    return torch.cat([middle - sides[:, :2], middle + sides[:, 2:]], dim=1).clamp(0, SIZE)


def _survivors(boxes: Tensor) -> Tensor:
    """Greedy suppression of boxes [B, N, 4] that stand in the order of preference -> bool [B,
    N]."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)  # [B, N, N]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    union = area[:, :, None] + area[:, None, :] - common
    overlaps = common > MOST_OVERLAP * union
    keep = torch.ones(boxes.shape[:2], dtype=torch.bool)
    for first in range(boxes.shape[1] - 1):
        later = slice(first + 1, None)
        keep[:, later] &= ~(overlaps[:, first, later] & keep[:, first, None])
    return keep


def _convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(width, width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.relu(hidden + self.body(hidden))
