"""Images made worse on purpose, and the table of what the metrics say of them."""

from __future__ import annotations

import pytest
import torch

from nanogen.bench import record, sanity
from nanogen.metrics.base import Score
from nanogen.metrics.harness import Measured
from nanogen.recipes import preset
from nanogen.types import Request


def request(count: int) -> Request:
    texts = tuple(f"caption {i}" for i in range(count))
    return Request(torch.arange(count), labels=torch.arange(count), texts=texts)


def test_blur_keeps_flat_images_and_spreads_a_point_as_a_gaussian():
    flat = torch.full((2, 3, 28, 28), 77, dtype=torch.uint8)
    assert torch.equal(sanity.blurred(flat, 1.5), flat)
    point = torch.zeros(1, 3, 29, 29, dtype=torch.uint8)
    point[..., 14, 14] = 255
    spread = sanity.blurred(point, 1.5)[0, 0].double()
    # A Gaussian of 1.5 pixels has 1 / (2 pi 1.5^2) at its middle.
    assert spread[14, 14] == pytest.approx(255 / (2 * torch.pi * 1.5**2), abs=1)
    x = torch.arange(29) - 14.0
    profile = spread.sum(0)
    assert ((profile * x**2).sum() / profile.sum()).item() == pytest.approx(1.5**2, rel=0.15)
    assert torch.equal(spread, spread.T)


def test_shuffled_requests_belong_to_other_images():
    asked, images = request(8), torch.zeros(8, 3, 2, 2)
    other, same = sanity.ROWS["requests shuffled"](asked, images)
    assert same is images
    assert other.labels is not None and other.texts is not None and asked.texts is not None
    assert sorted(other.labels.tolist()) == list(range(8))
    assert not (other.labels == asked.labels).any()
    assert set(other.texts) == set(asked.texts)
    assert all(a != b for a, b in zip(other.texts, asked.texts, strict=True))


@pytest.mark.parametrize("count", [256, 1000])
def test_shuffled_requests_ask_for_other_classes(count):
    """Stored neighbours share a class: a batch of them would be shuffled among its own."""
    task, shuffle = preset("animals/pixels-v").task.build(0), sanity.ROWS["requests shuffled"]
    pairs = [(real, shuffle(*real)[0]) for real in sanity._real(task, count)]
    labels = torch.cat([real[0].labels for real, _ in pairs])
    asked = torch.cat([other.labels for _, other in pairs])
    assert (labels == asked).float().mean() < 0.05
    indices = torch.cat([real[0].indices for real, _ in pairs])
    assert sorted(indices.tolist()) == list(range(count))


def test_noise_is_uniform_and_the_same_each_time():
    images = torch.zeros(20, 3, 28, 28, dtype=torch.uint8)
    (_, noise), (_, again) = (sanity.ROWS["uniform noise"](request(20), images) for _ in range(2))
    assert torch.equal(noise, again) and noise.dtype == torch.uint8
    assert noise.double().mean().item() == pytest.approx(127.5, abs=1)
    assert noise.double().std().item() == pytest.approx(255 / 12**0.5, abs=1)


@pytest.fixture
def measured(monkeypatch):
    """Count how often the rows are measured."""
    calls = []

    def measure(metrics, work, context):
        calls.append(sum(len(asked) for asked, _ in work.read(0, work.samples)))
        assert calls[-1] == work.samples
        scores = {}
        for metric in metrics:
            score = Score(0.5, None, calls[-1], metric.name[:2] != "fd")
            scores[metric.name] = Measured(score, 1)
        return scores

    monkeypatch.setattr(sanity.harness, "measure", measure)
    return calls


def test_rows_are_measured_once_and_again_where_one_is_missing(tmp_path, measured):
    run = preset("animals/pixels-v")
    records = sanity.measure(run, tmp_path)
    assert len(records) == len(sanity.ROWS) * len(run.evaluation.metrics)
    assert len(measured) == len(sanity.ROWS) and len(set(measured)) == 1
    again = sanity.measure(run, tmp_path)
    assert {(r.method, r.metric) for r in again} == {(r.method, r.metric) for r in records}
    assert len(measured) == len(sanity.ROWS)
    # A kill in the last row left one score out.
    lost = next(r for r in records if (r.method, r.metric) == ("uniform noise", "fd-animals"))
    (path,) = [p for p in tmp_path.rglob("*.json") if record.file_name(lost) == p.name]
    path.unlink()
    assert len(sanity.measure(run, tmp_path)) == len(records)
    assert path.exists()


def test_the_table_has_a_row_for_each_kind_of_image(tmp_path, measured):
    records = sanity.measure(preset("animals/pixels-v"), tmp_path)
    table = sanity.table(records, "title")
    assert [row[0].value for row in table.rows] == list(sanity.ROWS)
    assert {c.title: c.higher_is_better for c in table.columns}["fd-animals"] is False
    assert all(cell.value == 0.5 for row in table.rows for cell in row[1:])
