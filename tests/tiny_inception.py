"""The Inception of FID, narrow and random, and reference statistics for it, in the real formats.

    files = prepare_tiny(tmp_path)                      # asset name -> file
    with monkeypatch.context() as patch:
        stand_in(patch, tmp_path)                       # the same, in a store of their own

Every weight follows from a recipe, so that torch-fidelity gives its network the same ones anywhere:
`python tests/tiny_inception.py` prints its features, where torch-fidelity is installed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nanogen import store
from nanogen.encoders import inception
from nanogen.encoders.inception import Network
from nanogen.metrics import fid, inception_score, pairs
from nanogen.metrics import precision_recall as coverage
from nanogen.metrics.kid import Kid
from nanogen.metrics.reference import load_encoder
from nanogen.metrics.statistics_file import ADM_IN256, JIT_IN256

DIVISOR = 16
"""of all channels: 128 pooled features in place of 2048"""
SIDE = 75
"""pixels a side that the narrow network sees: 3 x 3 places and 63 spatial features"""
POOL, SPATIAL = 2048 // DIVISOR, 9 * inception.SPATIAL
REFERENCE_IMAGES = 40
ASSETS = (inception.WEIGHTS, JIT_IN256, ADM_IN256)


def weights(divisor: int = 1) -> dict[str, Tensor]:
    """A state dict of the network, its names those of the published file.

    Every tensor follows from its own name. Activations keep their size through all layers, and
    the moments of normalisation are not the trivial ones.
    """
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Network(divisor).state_dict().items()}
    return {name: _drawn(name, shape) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    draw = np.random.RandomState(seed)
    if name.endswith(("bn.weight", "running_var")):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = draw.randn(*shape) / 10
    else:
        values = draw.randn(*shape) * (2 / np.prod(shape[1:])) ** 0.5
    return torch.from_numpy(values).float()


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: noise."""
    draw = np.random.RandomState(seed)
    return torch.from_numpy(draw.randint(0, 256, (count, 3, height, width)).astype("uint8"))


def prepare_tiny(folder: Path) -> dict[str, Path]:
    """Weights of the narrow network, JiT's statistics and ADM's reference batch: name of the asset
    -> file.
    """
    files = {asset.name: folder / asset.file for asset in ASSETS}
    torch.save(weights(DIVISOR), files["inception-2015"])
    np.savez(files["jit-in256"], mu=np.zeros(POOL), sigma=np.eye(POOL))
    np.savez(
        files["adm-in256"],
        mu=np.ones(POOL),
        sigma=np.eye(POOL),
        mu_s=np.zeros(SPATIAL),
        sigma_s=np.eye(SPATIAL),
        arr_0=images(REFERENCE_IMAGES, seed=1).permute(0, 2, 3, 1).numpy(),
    )
    return files


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Make the network narrow, and the metrics content with its features and few samples."""
    patch.setattr(inception, "Network", functools.partial(Network, DIVISOR))
    patch.setattr(inception, "SIDE", SIDE)
    for metric in (fid.Fid, fid.Fid50k, fid.SpatialFid, pairs.Rfid):
        patch.setattr(metric, "minimum", 2 * POOL)
    for metric, features in ((fid.Fid, POOL), (fid.Fid50k, POOL), (fid.SpatialFid, SPATIAL)):
        patch.setattr(metric, "features", features)
    for metric in (inception_score.IsOnInception, coverage.PrOnInception, Kid):
        patch.setattr(metric, "minimum", 24)
    for metric in (coverage.PrOnInception, Kid):
        patch.setattr(metric, "least_real_images", 24)
    patch.setattr(Kid, "size", 24)
    load_encoder.cache_clear()


def stand_in(patch: pytest.MonkeyPatch, folder: Path) -> dict[str, Path]:
    """`shrink`, and tiny files in a store of their own in `folder`, which takes them for the
    published ones: asset name -> file.
    """
    shrink(patch)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setattr(store, "_agrees", lambda asset, manifest: True)
    (folder / "files").mkdir()
    files = prepare_tiny(folder / "files")
    for asset in ASSETS:
        store.prepare(asset, files[asset.name])
    return files


def fidelity_network() -> Any:
    """torch-fidelity's own network, with the recipe's weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Theirs(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kw: Any) -> Any:
            return super().load_state_dict(weights(), strict=False)

    theirs.load_state_dict_from_url = lambda *args, **kw: {}
    return Theirs("inception-v3-compat", ["2048", "logits_unbiased"])


def record() -> dict[str, Any]:
    """The golden features of torch-fidelity, for `tests/golden/inception_features.json`."""
    import torch_fidelity

    found = {}
    network = fidelity_network()
    for height, width in ((28, 28), (320, 256)):
        pool, logits = network(images(1, height, width))
        found[f"{height}x{width}"] = {
            "pool": pool[0, ::64].tolist(),
            "pool_norm": pool.norm().item(),
            "logits": logits[0, ::48].tolist(),
            "logits_norm": logits.norm().item(),
        }
    versions = {"torch_fidelity": torch_fidelity.__version__, "torch": torch.__version__}
    return {**versions, "features": found}


if __name__ == "__main__":
    print(json.dumps(record()))
