"""The printed tables of DiffusionBench (arXiv 2606.24888) as data, joined on the method.

Tables 2 and 4 are ImageNet-256 with and without guidance, Table 3 is text-to-image, Table 1
compares with what the methods' own papers report. Values are as printed, rounded as there; nothing
here was measured by this package.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources

from nanogen.errors import ConfigError, suggest

IMAGENET = {
    "fid": ("FID", False),
    "inception_score": ("IS", True),
    **{
        f"{kind}_{network}": (f"{title} {network}", False)
        for kind, title in (("fdr", "FDr"), ("mind", "MIND"))
        for network in ("inception", "convnext", "dinov2", "mae", "siglip")
    },
}
"""columns of Tables 2 and 4: title, and whether higher is better"""
TEXT_TO_IMAGE = {
    "geneval": ("GenEval", True),
    "dpg_bench": ("DPG", True),
    "genai_bench": ("GenAI", True),
}
"""columns of Table 3; DPG is DPG-Bench, GenAI is GenAI-Bench by VQAScore"""
PROTOCOLS = {"cfg": "table2_cfg", "nocfg": "table4_nocfg"}
"""ImageNet with the best guidance on [0, 0.9], or without guidance"""


@dataclass(frozen=True)
class Method:
    """One model of the paper, at one length of text-to-image training."""

    id: str
    name: str
    family: str
    """RAE, VAE, Pixel, MeanFlow or Public"""
    regularised: bool
    """trained with REG"""
    iterations: int | None
    """of text-to-image training; None where the paper gives none"""
    text_to_image: Mapping[str, float]
    imagenet: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """protocol -> column -> value; empty for public models"""
    latent21: bool = False
    pixel24: bool = False

    @property
    def joined(self) -> bool:
        """Whether it is a point of a correlation: on both tasks, and no repeat at 200K."""
        return bool(self.imagenet)


ROW_SETS: Mapping[str, Callable[[Method], bool]] = {
    "latent21": lambda m: m.latent21,
    "latent21_nopixel_noREG17": lambda m: m.latent21 and not m.regularised,
    "with_pixel24": lambda m: m.pixel24,
    "plus_meanflow26": lambda m: m.joined,
    "rae8": lambda m: m.latent21 and m.family == "RAE",
    "vae13": lambda m: m.latent21 and m.family == "VAE",
}
"""the paper's Figs. 1 and 5 show latent21, Fig. 4 with_pixel24; the others show what decides"""


@functools.cache
def table(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of one shipped CSV file, such as `table1`; an unknown name is a ConfigError."""
    folder = resources.files("nanogen") / "assets" / "published"
    known = sorted(f.name.removesuffix(".csv") for f in folder.iterdir() if f.name.endswith(".csv"))
    if name not in known:
        raise ConfigError(f"unknown published table {name!r}; {suggest(name, known)}")
    text = (folder / f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


@functools.cache
def methods() -> tuple[Method, ...]:
    """All 35 rows of Table 3 in its order, with the ImageNet values of the 26 that have them."""
    imagenet = {
        protocol: {row["method_id"]: row for row in table(name)}
        for protocol, name in PROTOCOLS.items()
    }
    return tuple(_method(row, imagenet) for row in table("table3_t2i"))


def row_set(name: str) -> tuple[Method, ...]:
    """The methods of one of `ROW_SETS`."""
    if name not in ROW_SETS:
        raise ConfigError(f"unknown set of rows {name!r}; {suggest(name, ROW_SETS)}")
    return tuple(m for m in methods() if ROW_SETS[name](m))


def _method(
    row: Mapping[str, str], imagenet: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> Method:
    iterations = int(row["iterations"]) if row["iterations"] else None
    # A longer text-to-image training has no ImageNet twin: its row would count the method twice.
    paired = iterations != 200_000 and all(row["method_id"] in rows for rows in imagenet.values())
    return Method(
        id=row["method_id"],
        name=row["method"],
        family=row["family"],
        regularised=row["reg"] == "1",
        iterations=iterations,
        text_to_image=_numbers(row, TEXT_TO_IMAGE),
        imagenet={
            protocol: _numbers(rows[row["method_id"]], IMAGENET)
            for protocol, rows in imagenet.items()
            if paired
        },
        latent21=row["in_corr_latent21"] == "1",
        pixel24=row["in_corr_with_pixel24"] == "1",
    )


def _numbers(row: Mapping[str, str], columns: Mapping[str, object]) -> dict[str, float]:
    return {name: float(row[name]) for name in columns if row[name]}
