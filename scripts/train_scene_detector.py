"""Train the scene detector and write `nanogen/assets/scene_detector.safetensors`.

    python scripts/train_scene_detector.py            # about 20 CPU minutes, one thread

Scenes are composed on the fly from the silhouettes of the training split; the validation split
picks the weights, the temperature and the counting threshold; the held-out split is only reported.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from nanogen.data.captions import ANIMALS, RELATIONS, TAGS, Scene, Wanted, parse
from nanogen.data.draws import generator
from nanogen.data.scenes import Object, Picture, Scenes, ScenesSource
from nanogen.encoders.scene_detector import (
    GRID,
    SIZE,
    WEIGHTS,
    SceneDetector,
    SceneNetwork,
    ink,
    middles,
)
from nanogen.metrics.geneval_rules import Detection, Rules
from nanogen.metrics.scenes import judge_scene, real_scenes
from nanogen.types import to_float

BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
AVERAGE = 0.998
"""decay of the moving average of the weights, in steps"""
CENTRAL, NEAR = 3.0, 7.0
"""a cell whose middle is within CENTRAL pixels of a centre (along both axes) is of the object; one
within NEAR is neither object nor background, as nobody can say which"""
NEITHER = -100


def draw_scene(rng: np.random.Generator) -> Scene:
    """One to four animals. Mostly of independent classes, so that neighbours say nothing of each
    other."""
    count = 1 + int(rng.choice(4, p=(0.2, 0.3, 0.25, 0.25)))
    names = [ANIMALS[k] for k in rng.integers(len(ANIMALS), size=count)]
    if rng.random() < 0.25:
        names = names[:1] * count
    wanted = [Wanted(name) for name in names]
    if count == 2 and rng.random() < 0.5:
        wanted[1] = Wanted(names[1], position=RELATIONS[rng.integers(4)])
    return Scene("training", tuple(wanted))


def compose(source: ScenesSource, split: str, draws: range) -> list[Picture]:
    """Random pictures of a split, each a function of its draw."""
    pictures = []
    for draw in draws:
        rng = generator(split, 0, draw)
        pictures.append(source.compose(draw_scene(rng), rng, split))
    return pictures


def disturb(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Images [B, 3, S, S] in [0, 1] as a generator might draw them: paler or darker, soft,
    noisy."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), 1, 1, 1, generator=random)

    pixels = 1 - (1 - pixels) * uniform(0.7, 1.15)
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = (torch.outer(line, line) / 16).expand(3, 1, 3, 3)
    edges = functional.pad(pixels, (1, 1, 1, 1), mode="replicate")
    soft = uniform(-0.5, 0.8).clamp(min=0)
    pixels = pixels + soft * (functional.conv2d(edges, kernel, groups=3) - pixels)
    noise = torch.randn(pixels.shape, generator=random)
    return (pixels + uniform(-0.04, 0.08).clamp(min=0) * noise).clamp(0, 1)


def targets(scenes: Sequence[Sequence[Object]]) -> tuple[Tensor, Tensor]:
    """Class of each cell, int64 [B, G, G] (0 background), and distances to the sides, [B, 4, G,
    G]."""
    labels = torch.zeros(len(scenes), GRID, GRID, dtype=torch.int64)
    sides = torch.zeros(len(scenes), 4, GRID, GRID)
    x, y = middles()
    for label, side, objects in zip(labels, sides, scenes, strict=True):
        for thing in objects:
            xmin, ymin, xmax, ymax = thing.box
            away = torch.maximum((x - (xmin + xmax) / 2).abs(), (y - (ymin + ymax) / 2).abs())
            label[(away <= NEAR) & (label == 0)] = NEITHER
            label[away <= CENTRAL] = 1 + ANIMALS.index(thing.name)
            distances = torch.stack([x - xmin, y - ymin, xmax - x, ymax - y])
            side[:, away <= CENTRAL] = distances[:, away <= CENTRAL]
    return labels, sides


def loss_of(network: SceneNetwork, pixels: Tensor, labels: Tensor, sides: Tensor) -> Tensor:
    """Cross-entropy over cells, and the absolute error of sides at the cells of objects."""
    # Channels last is a third faster on a CPU.
    logits, distances = network(ink(pixels).contiguous(memory_format=torch.channels_last))
    objects = labels > 0
    total = functional.cross_entropy(logits, labels, ignore_index=NEITHER, reduction="sum")
    error = (distances - sides).abs().mean(dim=1)[objects]
    # Per cell of an object: the many easy cells of background must not set the scale.
    return total / objects.sum() + 0.1 * error.mean()


def train(source: ScenesSource, steps: int, report: int) -> SceneNetwork:
    """The average of the weights over the last steps, as it was best on the validation split."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    network = SceneNetwork(len(ANIMALS))
    average = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    best, least, start = average, float("inf"), time.time()
    for step in range(1, steps + 1):
        pictures = compose(source, "train", range((step - 1) * BATCH, step * BATCH))
        images = torch.stack([picture.image for picture in pictures])
        labels, sides = targets([picture.objects for picture in pictures])
        loss = loss_of(network, disturb(to_float(images), random), labels, sides)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        follow(average, network, min(AVERAGE, step / (step + 9)))
        if step % report == 0 or step == steps:
            value = validate(average, source)
            seconds = time.time() - start
            print(f"step {step} loss {loss:.3f} validation {value:.4f} {seconds:.0f} s", flush=True)
            if value < least:
                best, least = copy.deepcopy(average), value
    return best


@torch.no_grad()
def follow(average: SceneNetwork, network: SceneNetwork, decay: float) -> None:
    """Move every tensor of the average towards the network's; counters are copied."""
    for mine, theirs in zip(
        average.state_dict().values(), network.state_dict().values(), strict=True
    ):
        mine.lerp_(theirs, 1 - decay) if mine.is_floating_point() else mine.copy_(theirs)


@torch.no_grad()
def cells(network: SceneNetwork, source: ScenesSource) -> tuple[Tensor, Tensor]:
    """Logits [n, 1 + K] and classes [n] at the objects' cells of 1,000 undisturbed validation
    scenes."""
    pictures = compose(source, "validation", range(1000))
    labels, _ = targets([picture.objects for picture in pictures])
    pixels = to_float(torch.stack([picture.image for picture in pictures]))
    logits = network(ink(pixels))[0].movedim(1, -1)
    return logits[labels > 0], labels[labels > 0]


def validate(network: SceneNetwork, source: ScenesSource) -> float:
    """Cross-entropy at the cells of objects."""
    return float(functional.cross_entropy(*cells(network, source)))


def calibrate(network: SceneNetwork, source: ScenesSource) -> float:
    """Divide the logits by the temperature that makes their probabilities truest on the validation
    split (Guo et al. 2017), and return it."""
    logits, classes = cells(network, source)
    grid = np.arange(0.5, 3.0, 0.02)
    temperature = min(grid, key=lambda t: float(functional.cross_entropy(logits / t, classes)))
    with torch.no_grad():
        network.classes.weight /= temperature
        network.classes.bias /= temperature
    return float(temperature)


def counting_threshold(detector: SceneDetector, source: ScenesSource) -> float:
    """The threshold at which most validation scenes of counting captions are read as captioned."""
    texts = [text for text in source.prompts() if parse(text).tag == "counting"] * 10
    images = real_scenes(source, texts, "validation")
    found = detector.detect(images)
    grid = [round(0.30 + 0.05 * k, 2) for k in range(13)]
    # On a plateau, the middle one: it is the farthest from both ends.
    rights = [accuracy(images, found, texts, Rules(counting_threshold=t)) for t in grid]
    tied = [t for t, right in zip(grid, rights, strict=True) if right == max(rights)]
    return tied[len(tied) // 2]


def accuracy(
    images: Tensor, found: list[list[Detection]], texts: Sequence[str], rules: Rules
) -> float:
    """Share of images that are judged to show their captions."""
    judged = zip(images, found, texts, strict=True)
    return float(np.mean([judge_scene(i, f, parse(t), rules).correct for i, f, t in judged]))


def report_on(detector: SceneDetector, source: ScenesSource, split: str, draws: int) -> None:
    """Print the share of correct images by tag, over the evaluation captions, and their mean."""
    rules = Rules(counting_threshold=detector.counting_threshold)
    shares = []
    for tag in TAGS:
        texts = [text for text in source.prompts() if parse(text).tag == tag] * draws
        images = real_scenes(source, texts, split)
        shares.append(accuracy(images, detector.detect(images), texts, rules))
        print(f"{split} {tag} {shares[-1]:.4f} n={len(texts)}")
    print(f"{split} task mean {np.mean(shares):.4f}")


def write(network: SceneNetwork, threshold: float, out: Path) -> None:
    """Half-precision weights with the class names and the counting threshold."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    facts = {"classes": ",".join(ANIMALS), "counting_threshold": str(threshold)}
    part = out.with_suffix(".part")
    save_file(tensors, part, metadata=facts)
    part.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--report", type=int, default=250, help="steps between validations")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = Scenes(size=SIZE).build()
    network = train(source, given.steps, given.report)
    print(f"temperature {calibrate(network, source):.2f}")
    write(network, Rules().counting_threshold, given.out)
    threshold = counting_threshold(SceneDetector(given.out), source)
    write(network, threshold, given.out)
    print(f"counting threshold {threshold}")
    detector = SceneDetector(given.out)
    for split, draws in (("validation", 4), ("held-out", 20)):
        report_on(detector, source, split, draws)


if __name__ == "__main__":
    main()
