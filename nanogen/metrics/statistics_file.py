"""Reference statistics in files: the moments of features of a whole data set.

    Statistics.load(find(JIT_IN256).path).gaussian("pool")     # mean [2048], covariance
    made = statistics_of(batches, "inception-2015", device)     # of any uint8 images
    made.save(place("my-photos"))                               # then fid[reference=my-photos]

The files are .npz as others publish them, under any of their names for the arrays. Those made here
say beside the moments how many images they are of, and the network with its hash.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nanogen import store
from nanogen.encoders.inception import NAME as INCEPTION
from nanogen.errors import ConfigError, DataError, MetricError, suggest
from nanogen.files import whole_file, writable_folder
from nanogen.fingerprint import digest_of_file
from nanogen.metrics.gaussian import Gaussian, accumulate
from nanogen.metrics.reference import load_encoder
from nanogen.store import Asset, Prepared, find

KEYS = {
    "pool": (("mu", "sigma"), ("ref_mu", "ref_sigma")),
    "spatial": (("mu_s", "sigma_s"),),
}
"""feature -> names of mean and covariance in published files; files made here use the first"""
JIT_IN256 = Asset(
    "jit-in256",
    "FID reference of ImageNet 256 by JiT",
    "MIT",
    url="https://raw.githubusercontent.com/LTH14/JiT/main/fid_stats/jit_in256_stats.npz",
    sha256="412046720c0d496dc6d72a30eac3e22b9ef6ddac3501cce7f996674ad227ba4c",
    size="34 MB",
)
"""what the tables of arXiv 2606.24888 are measured against"""
ADM_IN256 = Asset(
    "adm-in256",
    "reference batch of ImageNet 256 by ADM",
    "MIT",
    url="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz",
    size="2 GB",
)
"""moments of the whole training set, also spatial ones, and 10,000 images as `arr_0`"""
PUBLISHED = {asset.name: asset for asset in (JIT_IN256, ADM_IN256)}
"""all of features of Inception"""
DATA = "data"
"""as a reference: the training images of the data that are evaluated"""
BROKEN = (OSError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, zlib.error)
"""what numpy raises for files that are damaged, encrypted, or packed in unusual ways"""
ROUNDING = 1e-5
"""of a covariance that was computed in float32, to its largest value"""


@dataclass(frozen=True)
class Statistics:
    """Moments of features of one set of images."""

    gaussians: Mapping[str, Gaussian]
    """by feature"""
    network: str = ""
    """registered name; empty where a published file does not say it"""
    network_hash: str = ""

    @property
    def n(self) -> int:
        """Images; 0 where a published file does not say it."""
        return max(gaussian.n for gaussian in self.gaussians.values())

    def gaussian(self, feature: str) -> Gaussian:
        """Of one feature; DataError where the file has it not."""
        if feature not in self.gaussians:
            names = " and ".join(KEYS[feature][0])
            raise DataError(
                f"these statistics are of {', '.join(self.gaussians)} and not of {feature} "
                f"({names}); choose another reference"
            )
        return self.gaussians[feature]

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all; its folder is made if need be."""
        arrays: dict[str, np.ndarray] = {
            "network": np.array(self.network),
            "network_hash": np.array(self.network_hash),
        }
        for feature, gaussian in self.gaussians.items():
            mean, covariance = KEYS[feature][0]
            arrays[mean] = gaussian.mean.numpy()
            arrays[covariance] = gaussian.covariance.numpy()
            arrays["n"] = np.array(gaussian.n)
        writable_folder(path.parent)
        with whole_file(path) as part, part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an .npz of any of the known layouts, as float64.

        DataError that names the arrays found where there are no moments among them, and where they
        are of the wrong shape, not finite, or no moments at all.
        """
        try:
            found = np.load(path, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            with found as archive:
                return cls._of(archive, path)
        except (*BROKEN, zipfile.BadZipFile) as bad:
            raise DataError(
                f"{path} is no readable .npz of statistics: {bad}; get it anew"
            ) from bad

    @classmethod
    def _of(cls, archive: Mapping[str, np.ndarray], path: Path) -> Self:
        gaussians = {}
        n = int(archive["n"]) if "n" in archive else 0
        for feature, styles in KEYS.items():
            for mean, covariance in styles:
                if mean in archive and covariance in archive:
                    moments = (_float64(archive[mean]), _float64(archive[covariance]))
                    _check(*moments, path)
                    gaussians[feature] = Gaussian(*moments, n)
                    break
        if not gaussians:
            styles = " or ".join(f"{a}, {b}" for pairs in KEYS.values() for a, b in pairs)
            raise DataError(
                f"{path} holds {', '.join(archive) or 'nothing'}, but no moments ({styles}); "
                "give a file of statistics"
            )
        said = (str(archive[key]) if key in archive else "" for key in ("network", "network_hash"))
        return cls(gaussians, *said)


def statistics_of(images: Iterable[Tensor], network: str, device: torch.device) -> Statistics:
    """The moments of batches of images, uint8 [B, 3, H, W] of any sizes, on a registered network.

    MetricError where there are fewer than two images, or the network has no pooled features.
    """
    encoder = load_encoder(network, device)
    sums: dict[str, Tensor] = {}
    for batch in images:
        with torch.no_grad():
            features = encoder(batch.to(device))
        for feature in KEYS.keys() & features.keys():
            accumulate(sums, features[feature].flatten(1), f"{feature}/")
    found = sorted({name.partition("/")[0] for name in sums})
    if not found:
        raise MetricError(
            f"there are no statistics on {network}: no images, or no feature of it that is one of "
            f"{', '.join(KEYS)}; give images, or choose another network"
        )
    gaussians = {feature: Gaussian.of_sums(sums, f"{feature}/") for feature in found}
    return Statistics(gaussians, network, encoder.fingerprint)


def load_statistics(path: Path, feature: str = "pool") -> Gaussian:
    """The moments of one feature in a file; DataError where they are not in it."""
    return Statistics.load(path).gaussian(feature)


def place(name: str) -> Path:
    """Where statistics that are made here lie, under a name of one's own."""
    if name in (*PUBLISHED, DATA):
        raise ConfigError(f"{name!r} is the name of another reference; choose a name of your own")
    return _folder() / f"{name}.npz"


def located(name: str, network: str = INCEPTION) -> Prepared:
    """The file of a reference for features of a network: a published one, or one made here.
    ConfigError, with what to do, where it is not there.
    """
    published = PUBLISHED if network == INCEPTION else {}
    if name in published:
        return find(published[name])
    path = _folder() / f"{name}.npz"
    if not path.is_file():
        made = sorted(f.stem for f in path.parent.glob("*.npz") if _network_of(f) in ("", network))
        known = suggest(name, (*published, DATA, *made))
        raise ConfigError(
            f"there is no reference {name!r} of {network}; {known} (nanogen prepare stats makes "
            "others)"
        )
    return Prepared(path, digest_of_file(path))


def _network_of(file: Path) -> str:
    """The one that statistics are of; empty where the file does not say it, or is broken."""
    with contextlib.suppress(*BROKEN, zipfile.BadZipFile), np.load(file) as archive:
        return str(archive["network"]) if "network" in archive else ""
    return ""


def _folder() -> Path:
    return store.root().parent / "statistics"


def _float64(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"an array of {array.dtype} is no moment")
    return torch.from_numpy(np.asarray(array, np.float64))


def _check(mean: Tensor, covariance: Tensor, path: Path) -> None:
    d = len(mean) if mean.ndim == 1 else 0
    if not d or covariance.shape != (d, d):
        raise DataError(
            f"{path} holds a mean {list(mean.shape)} and a covariance {list(covariance.shape)}; "
            "they must be [d] and [d, d]"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise DataError(f"{path} holds values that are not finite; get it anew")
    skew = (covariance - covariance.T).abs().max()
    if skew > ROUNDING * covariance.abs().max() or covariance.diagonal().min() < 0:
        raise DataError(
            f"{path} holds a matrix that is no covariance: it is not symmetric, or its diagonal is "
            "negative; save the covariance itself, and no factor of it"
        )
