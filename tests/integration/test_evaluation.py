"""The evaluation of a run: the same bits whoever measures, when, and after whatever kill."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import chz
import pytest
import torch
from tiny import WORDS, command, ranks, tiny, trained

from nanogen import run_folder
from nanogen.bench import outcomes, record
from nanogen.bench.record import Record
from nanogen.conditioners.encoded import EncodedPrompts
from nanogen.data.scenes import Scenes
from nanogen.errors import ConfigError, MetricError, UserError
from nanogen.evaluation import measure, online
from nanogen.evaluation.repeats import averaged
from nanogen.evaluation.subjects import DrawnByRun
from nanogen.metrics import reference
from nanogen.metrics.base import Score
from nanogen.metrics.blocks import Kept, Tallies
from nanogen.metrics.harness import Measured
from nanogen.run_folder import Opened
from nanogen.types import Request

METRICS = "evaluation.metrics=fd-animals,accuracy-animals,pr-animals"
SETTINGS = (METRICS, "evaluation.samples=270", "sampling.batch=30")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run that measured itself at its end."""
    target = tmp_path_factory.mktemp("run") / "run"
    trained(tiny("animals/pixels-v", "train.images=16", *SETTINGS), target)
    return target


def opened(folder: Path, *overrides: str) -> Opened:
    return run_folder.open_run(folder, "ema", [*SETTINGS, *overrides])


def evaluate(folder: Path, out: Path, *overrides: str, check=lambda: None) -> list[Record]:
    one = opened(folder, *overrides)
    return measure.evaluate(DrawnByRun(one), online.plan_of(one.parts, out, check))


def values(records: list[Record]) -> dict[str, tuple[float, float | None, int]]:
    return {r.metric: (r.value, r.standard_error, r.n) for r in records}


def test_afterwards_as_during_training(folder, tmp_path):
    """To the last bit."""
    during = values(record.read(folder / "records"))
    assert len(during) == 4
    assert values(evaluate(folder, tmp_path)) == during


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes(folder, tmp_path, world):
    """Nine blocks of 30: sums of float64 are folded in their order, so the bits are the same."""
    assert (
        ranks(world, tmp_path / "store", lambda: evaluate(folder, tmp_path / "out")) == [0] * world
    )
    assert values(record.read(tmp_path / "out")) == values(record.read(folder / "records"))
    assert not (tmp_path / "out" / measure.KEPT).exists()


def test_more_processes_than_blocks(folder, tmp_path):
    few = ("sampling.batch=270",)
    alone = values(evaluate(folder, tmp_path / "one", *few))
    work = lambda: evaluate(folder, tmp_path / "out", *few)  # noqa: E731
    assert ranks(2, tmp_path / "store", work) == [0, 0]
    assert values(record.read(tmp_path / "out")) == alone


def test_a_killed_evaluation_continues_to_the_same_bits(folder, tmp_path, monkeypatch):
    calls = []

    def kill() -> None:
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, tmp_path, check=kill)
    assert record.read(tmp_path) == []
    drawn = []
    whole = DrawnByRun.read

    def counted(self, prompts, start, stop):
        drawn.append((start, stop))
        return whole(self, prompts, start, stop)

    monkeypatch.setattr(DrawnByRun, "read", counted)
    # Other processes may go on: what is kept is a block, not a share.
    found = values(evaluate(folder, tmp_path))
    assert drawn == [(start, start + 30) for start in range(120, 270, 30)]
    assert found == values(record.read(folder / "records"))
    assert not (tmp_path / measure.KEPT).exists()


def test_what_another_evaluation_kept_is_not_used(folder, tmp_path):
    class Second:
        calls = 0

        def __call__(self) -> None:
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, tmp_path, "sampling.seed=1", check=Second())
    assert values(evaluate(folder, tmp_path)) == values(record.read(folder / "records"))


def test_what_was_never_continued_is_told(folder, tmp_path, caplog):
    """Of an evaluation that ended well, nothing; of one that kept nothing yet, nothing."""
    calls = iter(range(3))

    def kill() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, tmp_path, "sampling.seed=1", check=kill)
    one = opened(folder)
    plan = replace(online.plan_of(one.parts, tmp_path), quiet=False)
    measure.evaluate(DrawnByRun(one), plan)
    [said] = [entry.getMessage() for entry in caplog.records]
    assert f"{tmp_path / measure.KEPT} keeps the blocks of 1 evaluation that did not end" in said
    evaluate(folder, tmp_path, "sampling.seed=1")
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, tmp_path, "sampling.seed=2", check=kill)
    assert not (tmp_path / measure.KEPT).exists() and len(caplog.records) == 1


def test_repeats_draw_other_noise_and_say_their_spread(folder, tmp_path):
    singles = [
        {r.metric: r.value for r in evaluate(folder, tmp_path / str(k), f"sampling.seed={k}")}
        for k in range(3)
    ]
    found = {r.metric: r for r in evaluate(folder, tmp_path / "three", "evaluation.repeats=3")}
    for name, one in found.items():
        expected = torch.tensor([single[name] for single in singles], dtype=torch.float64)
        assert one.value == pytest.approx(expected.mean().item(), rel=1e-12)
        assert one.facts["deviation_of_repeats"] == pytest.approx(expected.std().item(), abs=1e-12)
        assert one.facts["repeats"] == 3
    distance = found["fd-animals"]
    assert distance.standard_error == pytest.approx(distance.facts["deviation_of_repeats"] / 3**0.5)


def test_truncation_darkens_by_half_a_level(folder):
    """A published code truncates; the mean over many levels moves by 0.5 of 255."""
    one = opened(folder)
    request = one.parts.task.request(0, 60)
    sampler = one.parts.sampler()
    rounded, cut = (
        torch.cat([images for _, images in sampler.stream(request, how)]).double()
        for how in ("round", "truncate")
    )
    inside = (rounded > 1) & (rounded < 254)
    assert (rounded - cut)[inside].mean().item() == pytest.approx(0.5, abs=0.05)
    assert set((rounded - cut).unique().tolist()) == {0.0, 1.0}


def test_blocks_are_known_by_all_that_decides_an_image(folder):
    one = opened(folder)
    others = [replace(one, seen=8), replace(one, weights="raw"), opened(folder, "sampling.seed=1")]
    others.append(opened(folder, "evaluation.quantise=truncate"))
    said = [DrawnByRun(other).identity for other in (one, *others)]
    said.append(DrawnByRun(one).again(1).identity)
    assert all(a != b for a, b in itertools.combinations(said, 2))


def test_samples_are_made_whole_as_the_run_says(folder):
    """What a record says of quantisation is what was measured."""
    read = {}
    for how in ("round", "truncate"):
        subject = DrawnByRun(opened(folder, f"evaluation.quantise={how}"))
        read[how] = torch.cat([images for _, images in subject.read("", 0, 30)])
    assert (read["round"].int() - read["truncate"].int()).unique().tolist() == [0, 1]


def test_an_error_is_no_smaller_than_the_score_knows():
    """Repeats that happen to agree do not make a share of few samples certain."""
    scores = [
        {"share": Measured(Score(value, 0.1, 25, True), 1, skipped=2)} for value in (0.5, 0.5, 0.6)
    ]
    found = averaged(scores)["share"]
    assert found.score.standard_error == 0.1 and found.skipped == 6


def test_references_are_computed_once_a_process(folder, tmp_path, monkeypatch):
    evaluate(folder, tmp_path)
    monkeypatch.setattr(reference, "real_features", lambda *given: pytest.fail("read again"))
    evaluate(folder, tmp_path)


def test_outcomes_stand_beside_the_record(tmp_path):
    run = tiny("scenes/pixels-v", "train.images=8", *WORDS)
    trained(run, tmp_path / "run")
    settings = ["evaluation.metrics=scene-eval", "evaluation.samples=30"]
    one = run_folder.open_run(tmp_path / "run", "ema", settings)
    records = measure.evaluate(DrawnByRun(one), online.plan_of(one.parts, tmp_path / "out"))
    main = next(r for r in records if r.metric == "scene-eval")
    kept = outcomes.read(tmp_path / "out", main)
    assert kept is not None
    assert kept.prompts == one.parts.task.request(0, 30).texts
    shares = {
        tag: [v for v, t in zip(kept.values, kept.tags, strict=True) if t == tag]
        for tag in kept.tags
    }
    means = [sum(found) / len(found) for found in shares.values()]
    assert main.value == pytest.approx(sum(means) / len(means))


def test_prompts_are_encoded_once_and_alone():
    from nanogen import registry
    from nanogen.errors import MissingExtra

    try:
        encoder = registry.get("conditioner", "minilm")().build(Scenes().build())
    except MissingExtra:
        pytest.skip("needs the package of the small text encoder")
    texts = Scenes().build().prompts()[:9]
    prepared = EncodedPrompts.of(encoder, texts)
    request = Request(torch.arange(9), texts=texts[::-1])
    expected = encoder.encode(request)
    encoder.rows = lambda captions: pytest.fail("encoded again")
    found = prepared.encode(request)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.mask, expected.mask)
    assert len(prepared.null(3)) == 3


def test_images_that_are_there_have_no_other_noise():
    from nanogen.evaluation.subjects import Given

    with pytest.raises(ConfigError, match="evaluation.repeats has no effect"):
        Given(None).again(1)  # ty: ignore[invalid-argument-type]


@pytest.mark.slow
def test_the_command_under_torchrun_writes_what_one_process_writes(folder, tmp_path):
    arguments = ["eval", str(folder), *SETTINGS]
    done = command([*arguments, "--out", str(tmp_path / "one")])
    assert done.returncode == 0, done.stderr
    done = command([*arguments, "--out", str(tmp_path / "two")], processes=2)
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert names == {p.name for p in (tmp_path / "two").iterdir()} and len(names) == 4
    for name in names:
        one, two = (json.loads((tmp_path / f / name).read_text()) for f in ("one", "two"))
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_evaluation_fields_are_checked():
    from nanogen.evaluation.settings import Evaluation

    for field, wrong in (("samples", 0), ("repeats", 0), ("images_per_prompt", -1), ("every", -1)):
        with pytest.raises(ConfigError, match=f"evaluation.{field}="):
            chz.replace(Evaluation(), **{field: wrong})
    for field in ("quantise", "precision"):
        with pytest.raises(ConfigError, match=f"evaluation.{field}='x': choose"):
            chz.replace(Evaluation(), **{field: "x"})


def test_a_broken_block_is_measured_again(folder, tmp_path, caplog):
    calls = iter(range(5))

    def kill() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, tmp_path, check=kill)
    block = min((tmp_path / measure.KEPT).glob("*/*"))
    block.write_bytes(block.read_bytes()[:100])
    assert values(evaluate(folder, tmp_path)) == values(record.read(folder / "records"))
    assert f"{block} is broken" in caplog.text


def test_a_block_that_cannot_be_kept_is_one_clear_line(tmp_path):
    kept = Kept(tmp_path / "file" / "blocks")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep what was measured.*choose another --out"):
        kept.write(0, Tallies({"skipped": torch.tensor(0)}))


def test_the_same_is_not_measured_twice_at_once(folder, tmp_path):
    """Whoever comes second is told so, and takes nothing from the first."""

    class Meanwhile:
        said: str = ""

        def __call__(self) -> None:
            if not self.said:
                with pytest.raises(MetricError) as refused:
                    evaluate(folder, tmp_path)
                self.said = str(refused.value)

    meanwhile = Meanwhile()
    found = values(evaluate(folder, tmp_path, check=meanwhile))
    assert "another command measures the same" in meanwhile.said
    assert found == values(record.read(folder / "records"))
    assert not (tmp_path / measure.KEPT).exists()


def test_every_process_of_a_second_command_is_told(folder, tmp_path):
    """None of them waits for one that has left."""

    def second() -> None:
        with pytest.raises(MetricError, match="another command measures the same"):
            evaluate(folder, tmp_path)

    class Meanwhile:
        statuses: list[int] = []

        def __call__(self) -> None:
            self.statuses = self.statuses or ranks(2, tmp_path / "store", second)

    meanwhile = Meanwhile()
    evaluate(folder, tmp_path, check=meanwhile)
    assert meanwhile.statuses == [0, 0]
