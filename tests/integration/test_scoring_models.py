"""Several scoring models on the same images: one at a time, on images that are drawn once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from PIL import Image
from tiny import WORDS, ranks, tiny, trained
from tiny_contrastive import pictures, tiny_store
from tiny_pipelines import write_pipeline

from nanogen import run_folder
from nanogen.bench import record
from nanogen.bench.record import Record
from nanogen.evaluation import foreign, foreign_settings, measure, online
from nanogen.evaluation.drawn import SUFFIX
from nanogen.evaluation.settings import Evaluation
from nanogen.evaluation.subjects import DrawnByRun
from nanogen.images.pipeline import Pipeline
from nanogen.images.settings import PipelineConfig
from nanogen.metrics import harness
from nanogen.metrics.clip_score import CLIP_B, CLIP_L
from nanogen.metrics.harness import Work
from nanogen.metrics.pick_score import MODEL, TOKENIZER
from nanogen.metrics.prompted import PromptedMetric
from nanogen.sampling.generate import Sampler

SCORING = ("clip-score", "clip-score[variant=hessel]", "pick-score")
PAIR = SCORING[:2]
SAMPLES, BATCH = 24, 6
BLOCKS = SAMPLES // BATCH
CPU = foreign_settings.Place(device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("scoring")
    with tiny_store(folder / "store", CLIP_L, CLIP_B, MODEL, TOKENIZER):
        yield folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    trained(tiny("scenes/pixels-v", "train.images=8", *WORDS), place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def images(place: Path) -> Path:
    folder = place / "images"
    folder.mkdir()
    for number, image in enumerate(pictures(SAMPLES)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"cow {number % 7}")
    return folder


@pytest.fixture(scope="module")
def pipeline(place: Path) -> Path:
    return write_pipeline(place / "pipeline", "StableDiffusion3Pipeline")


def subject_of(run: Path, metrics: tuple[str, ...]) -> DrawnByRun:
    settings = [f"evaluation.metrics={','.join(metrics)}", f"evaluation.samples={SAMPLES}"]
    return DrawnByRun(run_folder.open_run(run, "ema", [*settings, f"sampling.batch={BATCH}"]))


def of_run(
    run: Path, out: Path, *metrics: str, check: Callable[[], None] = lambda: None
) -> list[Record]:
    subject = subject_of(run, metrics)
    return measure.evaluate(subject, online.plan_of(subject.opened.parts, out, check))


def of_pipeline(model: Path, out: Path, *metrics: str) -> list[Record]:
    settings = foreign.Foreign(
        reference="scenes/pixels-v",
        evaluation=Evaluation(samples=SAMPLES),
        pipeline=PipelineConfig(steps=1, batch=BATCH),
        machine=CPU,
    )
    return foreign.of_pipeline(str(model), metrics, settings, out)


def of_images(folder: Path, out: Path, *metrics: str) -> list[Record]:
    return foreign.of_images(folder, metrics, foreign.Foreign(machine=CPU), out)


def values(records: list[Record]) -> dict[str, tuple[float, float | None, int]]:
    return {r.metric: (r.value, r.standard_error, r.n) for r in records}


@pytest.fixture(scope="module")
def expected(run: Path, tmp_path_factory) -> dict[str, tuple[float, float | None, int]]:
    """What a pair of scoring models says of the run."""
    return values(of_run(run, tmp_path_factory.mktemp("expected"), *PAIR))


def networks() -> WeakSet[torch.nn.Module]:
    """All that are in memory, unreachable ones that nobody collected included."""
    return WeakSet(o for o in gc.get_objects() if issubclass(type(o), torch.nn.Module))


class Watch:
    """What networks are in memory when a scoring model has judged its first batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gc.collect()
        self.before = networks()
        self.own: dict[str, WeakSet[torch.nn.Module]] = {}
        self.counts: dict[str, int] = {}
        whole = PromptedMetric.update

        def update(metric: PromptedMetric, seen: object) -> None:
            whole(metric, seen)  # ty: ignore[invalid-argument-type]
            if metric.assets and metric.title not in self.counts:
                self.see(metric.title)

        monkeypatch.setattr(PromptedMetric, "update", update)

    def added(self) -> list[torch.nn.Module]:
        return [network for network in networks() if network not in self.before]

    def see(self, title: str) -> None:
        here = self.added()
        for other, theirs in self.own.items():
            assert not [one for one in here if one in theirs], f"{other} beside {title}"
        self.own[title], self.counts[title] = WeakSet(here), len(here)


def test_scoring_models_of_a_folder_are_open_one_at_a_time(images, tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    of_images(images, tmp_path, *SCORING)
    assert set(watch.counts) == set(SCORING) and min(watch.counts.values()) > 1
    assert watch.added() == []


def test_scoring_models_of_a_pipeline_are_open_one_at_a_time_and_without_it(
    images, pipeline, tmp_path, monkeypatch
):
    """As many networks are in memory as where a folder is measured: those of one model."""
    with monkeypatch.context() as patch:
        alone = Watch(patch)
        of_images(images, tmp_path / "images", *SCORING)
    drawn = []
    whole = Pipeline._images
    monkeypatch.setattr(
        Pipeline, "_images", lambda self, rows: (drawn.append(len(rows)), whole(self, rows))[1]
    )
    watch = Watch(monkeypatch)
    of_pipeline(pipeline, tmp_path / "out", *SCORING)
    assert watch.counts == alone.counts
    assert watch.added() == []
    assert sum(drawn) == SAMPLES


def test_scoring_models_of_a_run_are_open_one_at_a_time(run, tmp_path, monkeypatch):
    """All is drawn, and what draws leaves the device, before the first of them is opened."""
    events: list[str] = []

    def noted(kind: type, name: str) -> None:
        whole = getattr(kind, name)

        def call(self, *given):
            events.append(name)
            return whole(self, *given)

        monkeypatch.setattr(kind, name, call)

    subject = subject_of(run, ("scene-eval", *SCORING))
    watch = Watch(monkeypatch)
    for kind, name in (
        (DrawnByRun, "read"),
        (DrawnByRun, "rest"),
        (PromptedMetric, "update"),
    ):
        noted(kind, name)
    measure.evaluate(subject, online.plan_of(subject.opened.parts, tmp_path))
    assert set(watch.counts) == set(SCORING)
    assert watch.added() == []
    drawing, judging = events[: events.index("rest")], events[events.index("rest") + 1 :]
    assert drawing == ["read", "update"] * BLOCKS  # scene-eval sees images as they are drawn
    assert judging == ["update"] * BLOCKS * len(SCORING)
    assert not (tmp_path / measure.KEPT).exists()


def test_every_network_that_draws_moves(run):
    parts = subject_of(run, PAIR).opened.parts
    sampler = parts.sampler()
    sampler = replace(sampler, tokenizer=torch.nn.Linear(1, 1))
    sampler.move(torch.device("meta"))
    for part in (parts.model, parts.conditioner, sampler.tokenizer):
        held = list(part.parameters())
        assert held and all(one.is_meta for one in held)


def test_what_is_trained_stays_and_what_is_not_leaves_and_comes_back(run, monkeypatch):
    moves: list[str] = []
    monkeypatch.setattr(Sampler, "move", lambda self, device: moves.append(device.type))
    subject = subject_of(run, PAIR)
    elsewhere = replace(subject.opened.parts, device=torch.device("meta"))
    for stay, expected in ((False, ["meta", "cpu", "meta"]), (True, [])):
        opened = replace(subject.opened, parts=elsewhere)
        one = DrawnByRun(opened, stay=stay, encoded={"": elsewhere.conditioner})
        moves.clear()
        one.read("", 0, 1)
        one.rest()
        one.read("", 0, 1)
        assert moves == expected


def test_to_the_bit_as_in_one_pass(run, tmp_path):
    metrics = ("scene-eval", *PAIR)
    subject = subject_of(run, metrics)
    plan = online.plan_of(subject.opened.parts, tmp_path)
    work = Work(SAMPLES, BATCH, lambda start, stop: subject.read("", start, stop))
    together = {
        name: (one.score.value, one.score.standard_error, one.score.n)
        for name, one in harness.measure(plan.chosen(), work, plan.context).items()
    }
    assert values(of_run(run, tmp_path, *metrics)) == together


def test_on_any_number_of_processes(run, tmp_path, expected):
    work = lambda: of_run(run, tmp_path / "out", *PAIR)  # noqa: E731
    assert ranks(2, tmp_path / "store", work) == [0, 0]
    assert values(record.read(tmp_path / "out")) == expected
    assert not (tmp_path / "out" / measure.KEPT).exists()


class Killed:
    """Raises at call number `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("at", "left"), [(3, 2), (BLOCKS + 2, 0), (2 * BLOCKS + 1, 0)])
def test_a_killed_evaluation_draws_nothing_twice(run, tmp_path, monkeypatch, expected, at, left):
    """While it draws, in the middle of the first scoring model, and before the second does more."""
    with pytest.raises(KeyboardInterrupt):
        of_run(run, tmp_path, *PAIR, check=Killed(at))
    drawn: list[int] = []
    whole = DrawnByRun.read
    monkeypatch.setattr(
        DrawnByRun, "read", lambda self, *given: (drawn.append(given[1]), whole(self, *given))[1]
    )
    assert values(of_run(run, tmp_path, *PAIR)) == expected
    assert len(drawn) == left
    assert not (tmp_path / measure.KEPT).exists()


def test_other_metrics_after_a_kill_see_the_images_that_were_drawn(
    run, tmp_path, monkeypatch, expected
):
    with pytest.raises(KeyboardInterrupt):
        of_run(run, tmp_path, PAIR[0], check=Killed(BLOCKS + 2))
    monkeypatch.setattr(DrawnByRun, "read", lambda *given: pytest.fail("drawn again"))
    assert values(of_run(run, tmp_path, *PAIR)) == expected


def test_broken_images_are_drawn_again(run, tmp_path, caplog, expected):
    with pytest.raises(KeyboardInterrupt):
        of_run(run, tmp_path, *PAIR, check=Killed(BLOCKS + 2))
    file = max((tmp_path / measure.KEPT).glob(f"*/*{SUFFIX}"))
    file.write_bytes(file.read_bytes()[:500])
    assert values(of_run(run, tmp_path, *PAIR)) == expected
    assert f"{file} is broken" in caplog.text
