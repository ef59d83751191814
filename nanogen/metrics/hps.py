"""HPS v2 and v2.1: the cosine of an image and its prompt in CLIPs tuned on human choices.

    hps-v2, hps-v2.1
    hps-v2.1[antialias=no]      resized as by torchvision before 0.17

Wu et al. 2023 (arXiv 2306.09341). The two versions cannot be compared with each other. Published
tables show the cosine times 100, on the benchmark's own 3,200 prompts.

The published code (hpsv2 1.2.0) turns bytes to floats first and resizes then, by torchvision's
filter for tensors, of no particular version. That filter widens where it shrinks since version 0.17
and did not before: scores of large images depend on it, so it is an option.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from nanogen.encoders.contrastive import Contrastive, filled
from nanogen.encoders.fit_square import pad_square
from nanogen.encoders.open_clip_vit_h import config_of, renamed
from nanogen.encoders.text_tokens import Tokens, cleaned
from nanogen.encoders.weights import read_tensors
from nanogen.metrics.alignment import NEEDS, CosineMetric, Facts
from nanogen.metrics.base import Option
from nanogen.metrics.pick_score import TOKENIZER
from nanogen.registry import register
from nanogen.store import Asset, find

V2, V21 = (
    Asset(
        f"hps-{version}",
        f"HPS {version}",
        "Apache-2.0",
        hub="xswu/HPSv2",
        files=(f"HPS_{version}_compressed.pt",),
        size="1.97 GB",
    )
    for version in ("v2", "v2.1")
)


class HumanPreference(CosineMetric):
    """Subclass with `assets`: a file of OpenCLIP's weights, and the tokenizer."""

    version = 1
    resize = "longest side, bicubic on floats, black"
    options = {
        "antialias": Option("whether the filter widens where it shrinks", "yes", ("yes", "no"))
    }

    def opened(self) -> Contrastive:
        file, tokenizer = (find(asset).path for asset in self.assets)
        tensors = read_tensors(file)
        network = filled(config_of(tensors), renamed(tensors), where=str(file))
        fit = functools.partial(pad_square, antialias=self.chosen["antialias"] == "yes")
        return Contrastive(network, tokenizer, fit, self.context.device, self.context.precision)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        return super().tokens([cleaned(text) for text in texts])

    def facts(self) -> Facts:
        return {**super().facts(), "antialias": self.chosen["antialias"]}


@register("metric", "hps-v2", summary="HPS v2, a model of human preference", needs=NEEDS)
class HpsV2(HumanPreference):
    """The mean over images, each judged by its own prompt."""

    name = "hps-v2"
    assets = (V2, TOKENIZER)


@register("metric", "hps-v2.1", summary="HPS v2.1, a model of human preference", needs=NEEDS)
class HpsV21(HumanPreference):
    """The mean over images, each judged by its own prompt."""

    name = "hps-v2.1"
    assets = (V21, TOKENIZER)
