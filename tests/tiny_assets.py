"""A store that holds tiny random stand-ins, in the real formats, for everything that metrics need.

    with tiny_assets(tmp_path):
        harness.choose(["fid", "geneval"], context)

Networks are as small as their stand-ins, and metrics content with as few samples as fit these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import pytest
import tiny_contrastive
import tiny_dpg
import tiny_fdr
import tiny_geneval
import tiny_inception
import tiny_vqascore

from nanogen import store
from nanogen.bench.assets import known


@contextlib.contextmanager
def tiny_assets(folder: Path) -> Generator[None]:
    """What is computed of the stand-ins is kept in `folder` too, and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        # Stand-ins do not have the published hashes.
        patch.setattr(store, "_agrees", lambda asset, manifest: True)
        tiny_inception.shrink(patch)
        tiny_fdr.shrink(patch)
        tiny_geneval.shrink(patch)
        files = made(folder / "files")
        for name, asset in known().items():
            if name in files:
                store.prepare(asset, files[name])
        yield


def made(folder: Path) -> dict[str, Path]:
    """Every stand-in, by the name of its asset."""
    makers = (
        tiny_contrastive.prepare_tiny,
        tiny_dpg.prepare_tiny,
        tiny_geneval.prepare_tiny,
        tiny_vqascore.prepare_tiny,
        tiny_inception.prepare_tiny,
        lambda place: tiny_fdr.prepare_tiny(place, inception=tiny_inception.POOL),
    )
    found: dict[str, Path] = {}
    for number, make in enumerate(makers):
        place = folder / str(number)
        place.mkdir(parents=True)
        found |= make(place)
    return found
