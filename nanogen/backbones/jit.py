"""JiT, "just image transformers" (arXiv 2511.13720): plain blocks on large patches of pixels.

    backbone=jit                                                          JiT-B/16: 131M parameters
    backbone=jit backbone.depth=24 backbone.width=1024 backbone.heads=16            JiT-L/16: 459M
    backbone=jit backbone.depth=32 backbone.width=1280 backbone.heads=16 backbone.bottleneck=256
                                                                                    JiT-H/16: 953M

* A patch passes a bottleneck: p p C -> 128 without bias, then -> D. Fixed sin-cos positions are
  added, and queries and keys turn with their place (RoPE).
* AdaLN of time and class in every block; SwiGLU; RMSNorm, also on queries and keys.
* 32 copies of the class, each with a learned offset, join the sequence a third of the way up.

For classes, this is the function of the authors' code (github.com/LTH14/JiT) at the time 1 - t, and
the weights start from the same law; names of weights differ. The parameters are those of the paper
at its printed precision: 131M, 459M, 953M and 2B for B, L, H and G at patch 16; 133M, 462M and 956M
for B, L and H at 32; 141M for B at 64 (its Tables 5, 7 and 8). That code also counts the fixed
positions, 0.2M to 0.4M, which here are computed. Two things differ:

* The paper drops units (0.2 in the middle half of the blocks of JiT-H and JiT-G; 0 in JiT-B and
  JiT-L). There is no dropout here: a backbone is not told which sample it sees, so that the draws
  could not be those of the sample alone.
* The paper has no text. Here its tokens join where copies of a class would, with the mean of the
  real ones in place of the class vector; a null caption has no token, and 0 for its mean.
"""

from __future__ import annotations

import math

import chz
import torch
from torch import Tensor, nn

from nanogen.backbones.adaln import AdalnTransformer, FinalNorm, Shape, ZeroLinear
from nanogen.backbones.layers import Rotary, unpatchified
from nanogen.backbones.modulators import NumberEmbed
from nanogen.backbones.refusals import check_positive
from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.types import ConditionSpec, LatentSpec, State, Wiring

CLASS_TOKENS = 32
TIME_PERIOD = 10_000.0
FUSED = {"q": 3, "k": 3, "v": 3, "w1": 2, "w2": 2}
"""how many matrices of one shape, this one among them, are a single one in the authors' code"""


@register("backbone", "jit", summary="JiT: AdaLN and classes in context, on a bottleneck of pixels")
@chz.chz
class JitConfig:
    """Defaults are JiT-B: 12 blocks of width 768."""

    depth: int = chz.field(default=12, doc="blocks")
    width: int = chz.field(default=768, doc="width D")
    heads: int = 12
    mlp_ratio: float = 4.0
    bottleneck: int = chz.field(default=128, doc="width between the two layers of patch embedding")
    context_tokens: int = chz.field(
        default=CLASS_TOKENS, doc="copies of a class in the sequence; 0: none"
    )
    context_start: int | None = chz.field(
        default=None,
        doc="blocks before classes or text join the sequence; None: a third of all, as in the "
        "paper's sizes B, L and H",
    )

    @property
    def start(self) -> int:
        """Blocks that run before the condition joins the sequence."""
        return self.depth // 3 if self.context_start is None else self.context_start

    def build(self, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring) -> Jit:
        """ConfigError where the sizes do not fit each other, the latents, or the condition."""
        return Jit(self, latent, condition, wiring)


class Jit(AdalnTransformer):
    positions: Tensor
    """[N, D]"""

    def __init__(
        self, config: JitConfig, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring
    ) -> None:
        _check(config, condition)
        width = config.width
        shape = Shape(
            width,
            config.depth,
            config.heads,
            config.mlp_ratio,
            TIME_PERIOD,
            start=config.start,
            class_tokens=config.context_tokens,
        )
        super().__init__(shape, latent, condition, wiring)
        self.embed = BottleneckEmbed(latent.channels, latent.patch, config.bottleneck, width)
        positions = sin_cos(self.rows, self.columns, width)
        self.register_buffer("positions", positions, persistent=False)
        self.rotary = Rotary(
            self.rows, self.columns, width // config.heads, before=len(wiring.leaves)
        )
        self.norm = FinalNorm(width)
        self.head = ZeroLinear(width, latent.channels * latent.patch**2)
        _initialise(self)

    def image_tokens(self, image: Tensor) -> Tensor:
        return self.embed(image) + self.positions

    def predicted(self, state: State, tokens: Tensor, moment: Tensor, c: Tensor) -> State:
        tokens = self.norm(tokens, c)
        patches = self.head(tokens[:, len(self.wiring.leaves) :])
        return {"image": unpatchified(patches, self.latent)} | self.leaves.predicted(tokens)


class BottleneckEmbed(nn.Module):
    """[B, C, h, w] -> [B, N, D], tokens row by row, through `bottleneck` numbers a patch."""

    def __init__(self, channels: int, patch: int, bottleneck: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, bottleneck, kernel_size=patch, stride=patch, bias=False)
        self.expand = nn.Linear(bottleneck, width)
        nn.init.xavier_uniform_(self.reduce.weight.view(bottleneck, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.reduce(x).flatten(2).transpose(1, 2))


def sin_cos(rows: int, columns: int, width: int) -> Tensor:
    """[N, D], row by row: sines, then cosines of the column, then those of the row, each at the
    frequencies 10000^(-4j/D), j < D/4.
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    waves = []
    for place in (column, row):
        phase = place[:, None] * frequencies
        waves += [phase.sin(), phase.cos()]
    return torch.cat(waves, dim=1).float()


def _initialise(model: Jit) -> None:
    """Xavier-uniform matrices and zero biases; what starts at 0 or from N(0, 0.02) stays so."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not isinstance(module, ZeroLinear):
            rows, columns = module.weight.shape
            # The bound is that of the whole matrix, where this is a part of one.
            rows *= FUSED.get(name.rsplit(".", 1)[-1], 1)
            bound = math.sqrt(6 / (rows + columns))
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, NumberEmbed):
            module.reset_weights()


def _check(config: JitConfig, condition: ConditionSpec) -> None:
    check_positive(config, ("depth", "width", "heads", "bottleneck"))
    if config.width % 4:
        raise ConfigError(f"backbone.width={config.width}: 4 must divide it (sin-cos positions)")
    tokens, start = config.context_tokens, config.context_start
    if tokens < 0:
        raise ConfigError(f"backbone.context_tokens={tokens}: must be 0 or more")
    if condition.classes is None and tokens != CLASS_TOKENS:
        raise ConfigError(
            f"backbone.context_tokens={tokens} has no effect with text, which brings its own "
            "tokens; leave it out"
        )
    if start is not None and not 0 <= start < config.depth:
        raise ConfigError(
            f"backbone.context_start={start}: must lie between 0 and {config.depth - 1}, one less "
            "than backbone.depth"
        )
    if start is not None and not tokens:
        raise ConfigError(
            f"backbone.context_start={start} has no effect with backbone.context_tokens=0; leave "
            "it out"
        )
