"""What a Qwen-VL says of images, where the models of the published scores are not at hand.

    nanogen eval RUN --metrics vqascore-qwen,genai-bench-qwen[model=qwen2.5-vl-7b]

The model is asked `Does this image show "{caption}"?`, and the score of an image is the probability
that its answer begins with "Yes", from a softmax over all words. Every model has a scale of its
own: these scores compare with others of the same model only, and not with VQAScore.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nanogen.encoders.qwen_vl import QwenVl
from nanogen.metrics.base import Option
from nanogen.metrics.genai_bench import SET, BySkill
from nanogen.metrics.vqascore import NEEDS, Asked, VqaMetric
from nanogen.registry import register
from nanogen.store import Asset, find

FILES = ("*.json", "*.safetensors")


def _asset(name: str, weight: str) -> Asset:
    full = f"{name}-Instruct"
    what = f"{full}, a model that answers questions about images"
    hub = f"Qwen/{full}"
    return Asset(name.lower(), what, "Apache-2.0", hub=hub, files=FILES, size=weight)


MODELS = {
    asset.name: asset
    for asset in (
        _asset("Qwen3-VL-8B", "18 GB"),
        _asset("Qwen3-VL-4B", "9 GB"),
        _asset("Qwen3-VL-2B", "4 GB"),
        _asset("Qwen2.5-VL-7B", "17 GB"),
    )
}


@register("metric", "vqascore-qwen", summary="how sure Qwen-VL is of the captions", needs=NEEDS)
class VqaScoreQwen(VqaMetric):
    """The mean over images, each judged by its own caption."""

    name = "vqascore-qwen"
    version = 1
    options = {"model": Option("the model that is asked", "qwen3-vl-8b", tuple(MODELS))}
    models = MODELS
    template = 'Does this image show "{}"?'

    def opened(self) -> Asked:
        model = QwenVl(find(self.asset).path, self.context.device, self.dtype)

        def asked(images: Tensor, texts: Sequence[str]) -> Tensor:
            return model(images, [self.template.format(text) for text in texts])

        return asked


@register("metric", "genai-bench-qwen", summary="Qwen-VL on GenAI-Bench, by skill", needs=NEEDS)
class GenAiBenchQwen(BySkill, VqaScoreQwen):
    """The same parts as `genai-bench`, in the scale of another model."""

    name = "genai-bench-qwen"
    version = 1
    options = {**VqaScoreQwen.options, **SET}
