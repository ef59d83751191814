"""Vision encoders that transformers loads: their files, and how tokens are read from them.

    network = load_transformer(row, "Dinov2WithRegistersModel", path="")
    norm = take_norm(network, "layernorm", affine=False, epsilon=1e-5)
    HuggingFaceEncoder("dinov2-vit-b", network, norm, preprocess, Reading(prefix=5))

The final norm is taken out of the network and kept beside it. So what is read from a network has
never been through it, whichever block it comes from and whatever a version of transformers does to
the last one; and a norm without affine has no weights that could be applied by mistake.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanogen import hub
from nanogen.encoders.preprocess import Preprocess
from nanogen.encoders.vision import EncoderRow, Options, VisionEncoder, VisionFeatures
from nanogen.errors import ConfigError, MissingExtra
from nanogen.fingerprint import digest_of_module

FIELD = "path"
"""what names a folder in place of the hub, in `open_encoder` and in the configs that call it"""
MASK = "mask_token"
BASE = 256
"""every rule of size is published for images of 256 px and scaled to multiples of it"""


@dataclass(frozen=True)
class Reading:
    """Which tokens of a network are the features."""

    prefix: int
    """tokens before the patches: the class token and registers"""
    class_token: bool = True
    """whether the first of them is a class token"""
    layers: tuple[int, ...] = ()
    """blocks, from 0 and ascending, whose normed tokens are averaged; none: the last one alone"""
    pooled: bool = False
    """add the mean over tokens of the last of `layers` to each token (RAE v2)"""

    @property
    def fingerprint(self) -> str:
        layers = ".".join(map(str, self.layers)) or "last"
        return f"{layers}{'+mean' if self.pooled else ''}"


class HuggingFaceEncoder(VisionEncoder):
    """A transformer of the library `transformers`, frozen, with its preprocessing."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        norm: nn.Module,
        preprocess: Preprocess,
        reading: Reading,
    ) -> None:
        """`network` gives tokens before its final norm; `norm` stands for that."""
        super().__init__()
        config: Any = network.config
        self.name = name
        self.width = config.hidden_size
        self.grid = preprocess.side // config.patch_size
        self.network = network
        self.norm = norm
        self.preprocess = preprocess
        self.reading = reading
        how = f"{preprocess.fingerprint}/{_norm_fingerprint(norm)}/{reading.fingerprint}"
        self.fingerprint = f"{name}/{how}/{digest_of_module(self)}"
        self.requires_grad_(False)
        self.train(False)

    def forward(self, images: Tensor) -> VisionFeatures:
        """See `Reading`; `cls` is the normed class token, or with `layers` the mean over tokens: of
        the last of the layers where that is added to each token, else of the features.
        """
        normed = [self.norm(state) for state in self.states(self.preprocess(images))]
        prefix = self.reading.prefix
        if not self.reading.layers:
            cls = normed[0][:, 0] if self.reading.class_token else None
            return VisionFeatures(normed[0][:, prefix:], cls)
        patches = torch.stack([tokens[:, prefix:] for tokens in normed])
        mean = patches.mean(dim=0)
        if not self.reading.pooled:
            return VisionFeatures(mean, mean.mean(dim=1))
        pooled = patches[-1].mean(dim=1)
        return VisionFeatures(mean + pooled[:, None], pooled)

    def states(self, fed: Tensor) -> Sequence[Tensor]:
        """[B, 3, side, side] -> outputs of the blocks that are read, each [B, prefix + N, D], not
        normed.
        """
        outputs = self.run(fed, hidden=bool(self.reading.layers))
        if not self.reading.layers:
            return [outputs.last_hidden_state]
        # hidden_states[0] is what enters the first block.
        return [outputs.hidden_states[layer + 1] for layer in self.reading.layers]

    def run(self, fed: Tensor, hidden: bool) -> Any:
        """What the network returns; overridden where it must be told more than the images."""
        return self.network(pixel_values=fed, output_hidden_states=hidden)


def load_transformer(row: EncoderRow, kind: str, path: str, unused: Collection[str] = ()) -> Any:
    """`load`, for networks of patches: their patch must be the row's, and the token that stands for
    masked ones goes, as no feature depends on it.
    """
    network = load(row, kind, path, unused)
    # Older versions of transformers wrap the tower of images once more.
    network = getattr(network, "vision_model", network)
    patch = network.config.patch_size
    if patch != row.patch:
        raise ConfigError(
            f"{path or row.hub} has patches of {patch} px and {row.name} of {row.patch} px; give "
            f"the folder of {row.hub}"
        )
    if getattr(network.embeddings, MASK, None) is not None:
        setattr(network.embeddings, MASK, None)
    return network


def load(row: EncoderRow, kind: str, path: str, unused: Collection[str] = ()) -> Any:
    """The network `kind` of transformers with the weights of a row, in float32.

    `path` is a folder in place of the hub; its widths and depths may be others than the row's.
    Every weight of the network must be in the files, and every one in the files must be wanted or
    begin with one of `unused`. ConfigError where that is not so, or nothing can be had.
    """
    try:
        import transformers

        model = getattr(transformers, kind)
    except (ImportError, AttributeError) as problem:
        what = f"a version of transformers with {kind}"
        raise MissingExtra(what, "pip install -U 'nanogen[latents]'") from problem
    what = f"{kind} that transformers can load"
    wanted = path or row.hub
    source = hub.locate(wanted, "", "config.json", field=FIELD, what=what, gated=row.gated)
    try:
        with quiet():
            # No weights but safetensors are read: others are pickles. For a repository that has
            # others only, transformers asks the hub for its own conversion.
            network, found = model.from_pretrained(
                source.model,
                local_files_only=source.local,
                dtype=torch.float32,
                use_safetensors=True,
                # Not to ignore them, but to hear which they are.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as problem:  # a foreign file can break a constructor in any way
        advice = hub.advice(wanted, problem, FIELD, what, gated=row.gated and not source.local)
        raise ConfigError(advice) from problem
    check_weights(found, kind, wanted, tuple(unused))
    return network


def take_norm(
    owner: nn.Module, attribute: str, *, affine: bool, epsilon: float | None = None
) -> nn.Module:
    """Replace the LayerNorm `attribute` of a network by nothing, and return what stands for it.

    With `affine` that is the norm itself; without, a LayerNorm without weight and bias, of the same
    epsilon unless another is given.
    """
    norm = getattr(owner, attribute)
    setattr(owner, attribute, nn.Identity())
    if affine:
        return norm
    (width,) = norm.normalized_shape
    return nn.LayerNorm(width, eps=epsilon or norm.eps, elementwise_affine=False)


def side_of(row: EncoderRow, image_size: int, *, fixed: bool = False) -> int:
    """Pixels a side that the network is fed; ConfigError for a size without a published rule.

    `fixed` says that there is one size only.
    """
    if fixed and image_size != BASE:
        raise ConfigError(
            f"encoder {row.name!r} takes images of {BASE} px only, not {image_size}: its positions "
            f"are not resampled; resize them to {BASE} px"
        )
    if image_size < BASE or image_size % BASE:
        raise ConfigError(
            f"encoder {row.name!r} takes images of {BASE} px or a multiple, not {image_size}; "
            f"resize them to {max(1, round(image_size / BASE)) * BASE} px"
        )
    return row.side * (image_size // BASE)


def layers_of(
    row: EncoderRow, options: Options, defaults: tuple[int, ...], depth: int
) -> tuple[int, ...]:
    """The blocks of the option `layers`, such as `5.11.17.23`, or else the published ones.

    ConfigError unless they ascend from 0 to less than `depth`, the number of blocks.
    """
    written = options.get("layers")
    if written is None and not defaults:
        raise ConfigError(
            f"encoder {row.name!r} has no published layers; choose some, such as "
            f"{row.name}[layers={depth // 2 - 1}.{depth - 1}]"
        )
    try:
        layers = tuple(map(int, written.split("."))) if written is not None else defaults
    except ValueError:
        layers = ()
    ascending = all(a < b for a, b in zip(layers, layers[1:], strict=False))
    if not layers or not ascending or layers[0] < 0 or layers[-1] >= depth:
        shown = ".".join(map(str, defaults)) if written is None else written
        raise ConfigError(
            f"encoder {row.name!r} with layers={shown}: write ascending numbers of its {depth} "
            f"blocks with dots between, such as layers=0.{depth - 1}"
        )
    return layers


def flags(row: EncoderRow, options: Options, *names: str) -> tuple[bool, ...]:
    """Whether each of the options `names` is set; ConfigError for one with a value."""
    for name in names:
        if options.get(name):
            raise ConfigError(f"encoder {row.name!r}: {name} takes no value; write [{name}]")
    return tuple(name in options for name in names)


def full_name(row: EncoderRow, options: Options) -> str:
    """`dinov2-vit-b[norm,woreg]`: the same in whatever order the options were written."""
    parts = [f"{key}={value}" if value else key for key, value in sorted(options.items())]
    return f"{row.name}[{','.join(parts)}]" if parts else row.name


def check_weights(found: Any, kind: str, model: str, unused: tuple[str, ...]) -> None:
    """ConfigError unless the files held what the network needs, and nothing unknown."""
    troubles = {
        # Files that were made without training on masked patches lack the token.
        "missing": {key for key in found["missing_keys"] if not key.endswith(f".{MASK}")},
        "misshapen": {str(key) for key, *_ in found["mismatched_keys"]},
        "unknown": {key for key in found["unexpected_keys"] if not key.startswith(unused)},
    }
    for trouble, keys in troubles.items():
        if keys:
            raise ConfigError(
                f"weights of {model} do not fit {kind}: {len(keys)} {trouble}, such as "
                f"{min(keys)}; get the files anew, or check that they are of this model"
            )


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """transformers logs a report of what `check_weights` reads; one message is enough."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _norm_fingerprint(norm: nn.Module) -> str:
    if isinstance(norm, nn.LayerNorm):
        return f"norm{'' if norm.elementwise_affine else '-plain'}-{norm.eps:g}"
    return "raw"
