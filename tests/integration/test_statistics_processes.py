"""Statistics of latents measured by several processes: those of one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny import ranks

from nanogen import dist
from nanogen.data.animals import Animals
from nanogen.tokenizers import statistics
from nanogen.tokenizers.statistics import Images

CPU = torch.device("cpu")


def offset(images: torch.Tensor) -> torch.Tensor:
    """Far from zero, where sums of squares would lose their digits."""
    return 100 + torch.nn.functional.avg_pool2d(images, 4)


@pytest.mark.parametrize("world", [2, 3])
def test_same_statistics(tmp_path, world):
    """50 images in shares of 25 and 25, or 16, 17 and 17, in batches of another size."""
    alone = statistics.measure(offset, Animals().build(), Images("held-out", 50, 50), CPU)

    def work():
        images = Images("held-out", 50, 7)
        found = statistics.measure(offset, Animals().build(), images, CPU)
        statistics.save(found, tmp_path / f"{dist.rank()}.safetensors")

    assert ranks(world, tmp_path / "store", work) == [0] * world
    files = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(world)]
    assert all(torch.equal(file[name], files[0][name]) for file in files for name in file)
    torch.testing.assert_close(files[0]["mean"], alone.mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(files[0]["var"], alone.variance, atol=1e-9, rtol=1e-6)
