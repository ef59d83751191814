"""Reconstructions measured by several processes: the records of one."""

from __future__ import annotations

import pytest
import torch
from tiny import ranks

from nanogen import dist
from nanogen.bench import record
from nanogen.data.animals import Animals
from nanogen.errors import MetricError
from nanogen.evaluation.measure import write
from nanogen.reconstruction import Options, Subject, measure
from nanogen.tokenizers.base import Autoencoder
from nanogen.types import LatentSpec

METRICS = ("psnr", "ssim", "rfd-animals")


class Halved(Autoencoder):
    """Loses every other pixel."""

    def __init__(self) -> None:
        super().__init__(LatentSpec(3, 14, 14, 1), "halved")

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 2)

    def from_raw(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.repeat_interleave(2, 2).repeat_interleave(2, 3)


def measured(samples: int, batch: int = 64, metrics: tuple[str, ...] = METRICS):
    options = Options(metrics, samples, batch=batch)
    return measure(Halved(), Animals().build(), "held-out", options, Subject("halved"))


@pytest.mark.parametrize("world", [2, 3])
def test_same_records(tmp_path, world):
    """260 images in shares of 130 and 130, or 86, 87 and 87, in batches of another size."""
    alone = {one.metric: one for one in measured(260)}

    def work():
        records = measured(260, batch=50)
        write(records, tmp_path / str(dist.rank()))
        for one in records:
            record.write(tmp_path / f"rank{dist.rank()}", one)

    assert ranks(world, tmp_path / "store", work) == [0] * world
    for rank in range(world):
        found = {one.metric: one for one in record.read(tmp_path / f"rank{rank}")}
        assert set(found) == set(METRICS)
        for name, one in found.items():
            assert one.value == pytest.approx(alone[name].value, rel=1e-6)
            error = alone[name].standard_error
            assert one.standard_error == (error and pytest.approx(error, rel=1e-6))
            assert (one.n, one.facts) == (260, alone[name].facts)
    # Only the first process writes.
    assert (tmp_path / "0").exists() and not (tmp_path / "1").exists()


def test_more_processes_than_images(tmp_path):
    def work():
        with pytest.raises(MetricError, match="less than one each"):
            measured(1, metrics=("psnr",))

    assert ranks(2, tmp_path / "store", work) == [0, 0]
