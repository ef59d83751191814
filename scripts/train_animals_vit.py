"""Train the vision encoder of the embedded data: `nanogen/assets/animals_vit.safetensors`.

    python scripts/train_animals_vit.py        # about ten CPU minutes, one thread

Images of the train splits of `animals` and `scenes`, half and half. In a quarter of them a quarter
of the patches are hidden. Linear heads, thrown away afterwards, read from the tokens the pixels of
every patch, seen or hidden (masked image modelling as in SimMIM, arXiv 2111.09886), the class of
what a patch shows, and from the class token the classes and colours of the image. So the tokens
keep the image, and know what it shows. One seed, one thread: the same machine and version of torch
give the same file. The held-out split is only reported, once, at the end.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from nanogen.data import silhouettes
from nanogen.data.captions import ANIMALS, PALETTE
from nanogen.data.scenes import Scenes
from nanogen.encoders.animals_vit import (
    PATCH,
    WEIGHTS,
    WIDTH,
    AnimalsVit,
    Network,
    cut,
    fed,
    grid_of,
)
from nanogen.files import whole_file
from nanogen.train.adamw import AdamWConfig
from nanogen.train.ema import Ema
from nanogen.train.muon import MuonConfig
from nanogen.train.schedule import Schedule
from nanogen.types import to_float

OUT = Path(__file__).parents[1] / "nanogen" / "assets" / WEIGHTS
BATCH = 32
"""images of each data set in a step"""
AVERAGE = 0.998
"""decay of the moving average of the weights, in steps"""
MATRICES, REST = 0.005, 2e-3
"""highest learning rates: Muon's, and AdamW's for what Muon does not train"""
SHIFT, ZOOM, NOISE = 2, 0.15, 0.1
"""what training images are changed by at most: pixels, share of the size, standard deviation"""
VISIBLE = 0.25
"""ink from which a pixel shows an animal"""
HIDDEN = 0.25
"""share of images with hidden patches, and of the patches hidden in those"""
SEEN, GUESSED = 100.0, 10.0
"""weights of the squared error of pixels, of a patch that is seen and of one that is hidden, beside
the cross-entropies. In runs of 1,200 steps a linear map of the tokens drew held-out silhouettes
with 21.3 dB where both were 10, and with 30.0 dB so; the classes were known as well."""


@dataclass(frozen=True)
class Images:
    """Images with what they show."""

    ink: Tensor
    """float [B, 3, H, H]: 1 - image, so that the ground is 0"""
    shown: Tensor
    """float [B, 1, H, H]: 0 for ground, 1 + the class where an animal is"""
    classes: Tensor
    """float [B, 10]: share of each class among the classes of the image"""
    colours: Tensor
    """float [B, 6]: share of each colour"""


def animals(rows: Tensor, split: str = "train") -> Images:
    """Silhouettes of a split, black on white."""
    opacity, labels = silhouettes.load(split)
    ink = to_float(torch.from_numpy(opacity[rows.numpy()]))[:, None]
    classes = torch.from_numpy(labels[rows.numpy()])
    shown = (ink > VISIBLE) * (1 + classes.float())[:, None, None, None]
    colours = torch.zeros(len(rows), len(PALETTE))
    colours[:, tuple(PALETTE).index("black")] = 1
    one_hot = functional.one_hot(classes, len(ANIMALS)).float()
    return Images(ink.expand(-1, 3, -1, -1), shown, one_hot, colours)


def scenes(split: str, draws: range) -> Images:
    """Scenes composed of the silhouettes of a split."""
    source = Scenes().build()
    count = source.count(split)
    pictures = [source.picture(split, draw % count, draw // count) for draw in draws]
    ink = 1 - to_float(torch.stack([picture.image for picture in pictures]))
    shown = torch.zeros_like(ink[:, :1])
    classes = torch.zeros(len(pictures), len(ANIMALS))
    colours = torch.zeros(len(pictures), len(PALETTE))
    for k, picture in enumerate(pictures):
        for thing in picture.objects:
            kind = ANIMALS.index(thing.name)
            xmin, ymin, xmax, ymax = thing.box
            shown[k, 0, ymin:ymax, xmin:xmax] = 1 + kind
            classes[k, kind] = 1
            colours[k, tuple(PALETTE).index(thing.colour)] = 1
    shown *= ink.amax(dim=1, keepdim=True) > VISIBLE
    return Images(
        ink, shown, classes / classes.sum(1, keepdim=True), colours / colours.sum(1, keepdim=True)
    )


def augmented(images: Images, generator: torch.Generator) -> tuple[Images, Tensor]:
    """Each image mirrored or not, moved, zoomed, and blurred or sharpened; and a noisy copy.

    The silhouettes of a class share the way in which they were once scaled, which shows at their
    edges, and a network that is trained without this reads that instead of the shape.
    """
    count, _, side, _ = images.ink.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low

    zoom = uniform(1 - ZOOM, 1 + ZOOM)
    mirror = uniform(-1, 1).sign()
    move_x, move_y = (uniform(-SHIFT, SHIFT) * 2 / side for _ in range(2))
    zero = torch.zeros_like(zoom)
    rows = [torch.cat([zoom * mirror, zero, move_x], 3), torch.cat([zero, zoom, move_y], 3)]
    shape = list(images.ink.shape)
    grid = functional.affine_grid(torch.cat(rows, 2)[:, 0], shape, align_corners=False)
    moved = functional.grid_sample(images.ink, grid, align_corners=False)
    shown = functional.grid_sample(images.shown, grid, mode="nearest", align_corners=False)
    # A positive weight blurs, a negative one sharpens.
    blurred = functional.avg_pool2d(moved, 3, 1, 1)
    clean = (moved + uniform(-2, 1) * (blurred - moved)).clamp(0, 1)
    noise = torch.randn(clean.shape, generator=generator) * uniform(0, NOISE)
    changed = Images(clean, shown, images.classes, images.colours)
    return changed, 1 - (clean + noise).clamp(0, 1)


class Heads(nn.Module):
    """What is read from the tokens in training, all of it linear."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Linear(WIDTH, 3 * PATCH * PATCH)
        self.shown = nn.Linear(WIDTH, 1 + len(ANIMALS))
        self.classes = nn.Linear(WIDTH, len(ANIMALS))
        self.colours = nn.Linear(WIDTH, len(PALETTE))


class Trained(nn.Module):
    """The network, what stands in for a hidden patch, and the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()
        self.mask_token = nn.Parameter(torch.zeros(WIDTH))
        self.heads = Heads()

    def forward(self, images: Images, seen: Tensor, hidden: Tensor) -> Tensor:
        """The loss of a batch: `seen` [B, 3, H, H] are its images, `hidden` bool [B, N]."""
        grid = grid_of(seen.shape[-1])
        embedded = self.network.embed(fed(seen, grid))
        tokens = self.network.read(torch.where(hidden[..., None], self.mask_token, embedded))
        pixels = self.heads.pixels(tokens.patches)
        shown = functional.adaptive_max_pool2d(images.shown, grid).long().flatten(1)
        error = (pixels - cut(fed(images.ink, grid))).square().mean(2)
        # Per patch with ink: the many patches of ground must not set the scale.
        logits = self.heads.shown(tokens.patches).flatten(0, 1)
        total = functional.cross_entropy(logits, shown.flatten(), reduction="sum")
        return (
            (error * torch.where(hidden, GUESSED, SEEN)).mean()
            + total / shown.count_nonzero()
            + functional.cross_entropy(self.heads.classes(tokens.cls), images.classes)
            + functional.cross_entropy(self.heads.colours(tokens.cls), images.colours)
        )


def hidden_patches(count: int, side: int, generator: torch.Generator) -> Tensor:
    """bool [count, N]: in a share of the images, the same share of the patches at random."""
    tokens = grid_of(side) ** 2
    rank = torch.rand(count, tokens, generator=generator).argsort(1)
    chosen = torch.rand(count, 1, generator=generator) < HIDDEN
    return (rank < round(HIDDEN * tokens)) & chosen


def train(steps: int, report: int) -> Network:
    """The average of the weights at the end."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Trained()
    average = Ema(dict(model.network.named_parameters()), AVERAGE, warmup=True)
    adamw = AdamWConfig(lr=REST, weight_decay=0.01)
    optimiser = MuonConfig(lr=MATRICES, adamw=adamw).build(dict(model.named_parameters()))
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = Schedule(warmup=steps // 50, shape="cosine", final=0.0)
    order, start = torch.empty(0, dtype=torch.int64), time.process_time()
    for step in range(steps):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.factor(step, 1, steps)
        if len(order) < BATCH:
            order = torch.randperm(len(silhouettes.load("train").labels), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        halves = []
        for images in (animals(rows), scenes("train", range(step * BATCH, (step + 1) * BATCH))):
            changed, seen = augmented(images, generator)
            hidden = hidden_patches(BATCH, seen.shape[-1], generator)
            halves.append(model(changed, seen, hidden))
        loss = sum(halves) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update(step + 1)
        if (step + 1) % report == 0 or step + 1 == steps:
            seconds = time.process_time() - start
            print(f"step {step + 1} loss {loss.item():.3f} {seconds:.0f} CPU seconds", flush=True)
    with average.applied():
        return copy.deepcopy(model.network)


def write(network: Network, out: Path) -> None:
    """Weights as halves."""
    halves = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    with whole_file(out) as part:
        safetensors.torch.save_file(halves, part, metadata={"data": silhouettes.fingerprint()})


def linear_accuracy(known: Tensor, labels: Tensor, asked: Tensor, answers: Tensor) -> float:
    """Held-out accuracy of a linear classifier: features [n, D], labels int64 [n], -1 for none."""
    known, asked = known[labels >= 0], asked[answers >= 0]
    labels, answers = labels[labels >= 0], answers[answers >= 0]
    mean, std = known.mean(0), known.std(0) + 1e-3
    known, asked = (known - mean) / std, (asked - mean) / std
    probe = nn.Linear(known.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(probe.weight)
    optimiser = torch.optim.LBFGS(
        probe.parameters(), max_iter=200, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(probe(known), labels)
        loss = loss + 1e-4 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (probe(asked).argmax(1) == answers).float().mean().item()


def linear_psnr(known: Tensor, patches: Tensor, asked: Tensor, answers: Tensor) -> float:
    """dB, the mean over held-out images: tokens [n, N, D], and pixels [n, N, P] by least squares
    from them."""
    known, asked = (functional.pad(tokens, (0, 1), value=1.0) for tokens in (known, asked))
    rows = known.flatten(0, 1).double()
    gram = rows.T @ rows + 1e-6 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, rows.T @ patches.flatten(0, 1).double()).float()
    error = ((asked @ weight).clamp(0, 1) - answers).square().mean((1, 2))
    return (-10 * error.clamp(min=1e-10).log10()).mean().item()


@dataclass(frozen=True)
class Seen:
    """What the written encoder makes of images."""

    views: dict[str, Tensor]
    """[n, D] by what it is"""
    tokens: Tensor
    """[n, N, D]"""
    patches: Tensor
    """[n, N, 3 * p * p]: the pixels that each token stands for"""

    @classmethod
    @torch.no_grad()
    def of(cls, images: Images) -> Seen:
        pixels = 1 - images.ink
        encoder = AnimalsVit(pixels.shape[-1])
        parts = [encoder(part) for part in pixels.split(250)]
        tokens = torch.cat([part.patches for part in parts])
        views = {
            "the mean of the tokens": tokens.mean(1),
            "the class token": torch.cat([part.cls for part in parts if part.cls is not None]),
            "the pixels": pixels.flatten(1),
        }
        patch = pixels.shape[-1] // encoder.grid
        return cls(views, tokens, functional.unfold(pixels, patch, stride=patch).transpose(1, 2))


def measure(name: str, train: Images, test: Images, questions: tuple[str, ...]) -> None:
    """Print what is linearly in the tokens: classes and colours of images that have one only."""
    known, asked = Seen.of(train), Seen.of(test)
    for question in questions:
        shares = [getattr(images, question) for images in (train, test)]
        labels = [torch.where(s.amax(1) == 1, s.argmax(1), -1) for s in shares]
        for view, features in known.views.items():
            found = linear_accuracy(features, labels[0], asked.views[view], labels[1])
            print(f"{name}: {question} from {view}: {found:.4f} held out", flush=True)
    found = linear_psnr(known.tokens, known.patches, asked.tokens, asked.patches)
    print(f"{name}: pixels from the token of their patch: {found:.2f} dB held out", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--report", type=int, default=250, help="steps between lines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    write(train(given.steps, given.report), OUT)
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")
    every = [torch.arange(len(silhouettes.load(split).labels)) for split in ("train", "held-out")]
    measure("animals", animals(every[0]), animals(every[1], "held-out"), ("classes",))
    both = scenes("train", range(7000)), scenes("held-out", range(2000))
    measure("scenes", *both, ("classes", "colours"))


if __name__ == "__main__":
    main()
