"""Configs: what goes in comes out, what is misspelt is explained, and no code ever gets in."""

from __future__ import annotations

from pathlib import Path

import chz
import pytest
import yaml
from conftest import tiny_run

from nanogen import config, recipes, registry
from nanogen.errors import ConfigError
from nanogen.run import Run, check

RUN = recipes.preset("animals/pixels-v")


def override(*arguments: str) -> Run:
    return config.override(RUN, arguments)


@pytest.mark.parametrize("name", recipes.names())
class TestRoundTrips:
    def test_flat(self, name: str) -> None:
        run = recipes.preset(name)
        assert config.make(Run, config.flatten(run)) == run

    def test_yaml(self, name: str, tmp_path: Path) -> None:
        run = recipes.preset(name)
        config.write(run, tmp_path / "run.yaml")
        assert config.read(Run, tmp_path / "run.yaml") == run
        # The dump is complete and plain: a reader needs no defaults, and no tag names a class.
        text = (tmp_path / "run.yaml").read_text()
        assert "!!" not in text and "nanogen." not in text
        assert yaml.safe_load(text)["train"]["clip"] == run.train.clip

    def test_overrides(self, name: str) -> None:
        """Every leaf of a run can be written as an override of itself."""
        run = recipes.preset(name)
        flat = config.flatten(run)
        texts = [
            f"{path}={config.shown(value)}"
            for path, value in flat.items()
            if not isinstance(value, type)
        ]
        assert config.override(run, texts) == run


class TestOverrides:
    def test_values(self) -> None:
        run = override(
            "train.batch=8", "train.clip=0.5", "objective.shift_base=4096", "machine.compile=true"
        )
        assert (run.train.batch, run.train.clip) == (8, 0.5)
        assert run.objective.shift_base == 4096 and run.machine.compile is True
        assert override("objective.shift_base=None").objective.shift_base is None

    def test_tuples(self) -> None:
        assert override("evaluation.metrics=a,b").evaluation.metrics == ("a", "b")
        assert override("evaluation.metrics=").evaluation.metrics == ()
        assert override("optimiser.adamw.betas=0.8,0.9").optimiser.adamw.betas == (0.8, 0.9)

    def test_the_last_one_counts(self) -> None:
        assert override("seed=1", "seed=2").seed == 2

    def test_another_part_drops_the_fields_of_the_old(self) -> None:
        assert RUN.optimiser.lr > 1e-3
        assert override("optimiser=adamw").optimiser.lr == 2e-4
        # Fields of the new part count, wherever they stand.
        for order in (("optimiser=adamw", "optimiser.lr=1"), ("optimiser.lr=1", "optimiser=adamw")):
            assert override(*order).optimiser.lr == 1.0
        with pytest.raises(ConfigError, match="optimiser.momentum"):
            override("optimiser=adamw", "optimiser.momentum=0.9")

    def test_the_same_part_again_starts_from_its_defaults(self) -> None:
        assert RUN.tokenizer.patch == 4 and override("tokenizer=pixels").tokenizer.patch == 16

    def test_a_part_within_a_part(self) -> None:
        run = override("task=text_to_image", "task.data=scenes", "task.data.size=40")
        assert run.task.data.size == 40
        with pytest.raises(ConfigError, match="not set: task.data"):
            override("task=text_to_image")

    @pytest.mark.parametrize(
        "argument, message",
        [
            ("sead=1", "unknown field 'sead'; Did you mean 'seed'"),
            ("train.bacth=4", "unknown field 'train.bacth'; Did you mean 'train.batch'"),
            ("tokenizer=pixles", "unknown tokenizer 'pixles'; did you mean pixels"),
            ("optimiser=adam", "did you mean adamw"),
            ("train.batch=x", "train.batch=x does not fit: could not cast 'x' to int"),
            ("train.batch=1.5", "train.batch=1.5 does not fit"),
            ("objective.prediction=w", "objective.prediction=w does not fit.*'v', 'x'"),
            ("optimiser.adamw.betas=0.9", "optimiser.adamw.betas=0.9 does not fit"),
            ("train.clip=nan", "train.clip=nan is not a number"),
            ("train=4", "train is a group of fields; set one of them, such as train.images"),
            ("seed", "'seed' is not an override; write field=value"),
            ("a b=1", "is not an override"),
            ("=1", "is not an override"),
        ],
    )
    def test_mistakes_are_explained_in_one_line(self, argument: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            override(argument)
        assert "\n" not in str(caught.value)


CODE = [
    "os:system",
    "lambda: 1",
    "lambda: __import__('os').getcwd()",
    "nanogen.tokenizers.pixels:PixelsConfig",
    "builtins.print",
    "this",
]


class TestNoCode:
    """A name is looked up among registered parts; nothing is imported or evaluated."""

    @pytest.mark.parametrize("code", CODE)
    @pytest.mark.parametrize(
        "field", ["tokenizer", "task", "task.data", "objective", "optimiser", "backbone"]
    )
    def test_parts(self, field: str, code: str) -> None:
        with pytest.raises(ConfigError, match="unknown"):
            override(f"{field}={code}")

    @pytest.mark.parametrize("code", CODE)
    @pytest.mark.parametrize(
        "field", ["terms", "train", "machine", "sampling.guidance", "optimiser.adamw"]
    )
    def test_groups(self, field: str, code: str) -> None:
        with pytest.raises(ConfigError, match="group of fields"):
            override(f"{field}={code}")

    @pytest.mark.parametrize("code", CODE)
    @pytest.mark.parametrize("field", ["seed", "optimiser.lr", "machine.micro_batch"])
    def test_values(self, field: str, code: str) -> None:
        with pytest.raises(ConfigError, match="does not fit"):
            override(f"{field}={code}")

    @pytest.mark.parametrize("code", CODE)
    def test_text_stays_text(self, code: str) -> None:
        assert override(f"name={code}").name == code

    @pytest.mark.parametrize("code", CODE)
    @pytest.mark.parametrize(
        "field",
        ["tokenizer", "tokenizer.type", "task.data", "train", "terms", "train.clip", "seed"],
    )
    def test_files(self, field: str, code: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            config.read(Run, changed(tmp_path, field, code))

    def test_tags(self, tmp_path: Path) -> None:
        file, witness = tmp_path / "run.yaml", tmp_path / "witness"
        file.write_text(f"!!python/object/apply:os.mkdir ['{witness}']")
        with pytest.raises(ConfigError, match="not a readable config"):
            config.read(Run, file)
        assert not witness.exists()


def changed(folder: Path, path: str, value: object) -> Path:
    """The dump of a run with one value replaced."""
    tree = config.dump(RUN)
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="run.yaml does not exist"):
            config.read(Run, tmp_path / "run.yaml")

    @pytest.mark.parametrize("text", ["a: [", "\x00", "a: b: c", "&a [*a"])
    def test_not_yaml(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(ConfigError, match="run.yaml is not a readable config") as caught:
            config.read(Run, tmp_path / "run.yaml")
        assert "\n" not in str(caught.value)

    def test_wrong_encoding(self, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_bytes("name: käse".encode("latin-1"))
        with pytest.raises(ConfigError, match="not a readable config"):
            config.read(Run, tmp_path / "run.yaml")

    @pytest.mark.parametrize("text", ["", "- 1", "3", "word"])
    def test_not_fields(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(ConfigError, match="is not a config"):
            config.read(Run, tmp_path / "run.yaml")

    def test_incomplete(self, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text("name: mine")
        with pytest.raises(ConfigError, match="not set: task, tokenizer"):
            config.read(Run, tmp_path / "run.yaml")

    @pytest.mark.parametrize(
        "path, value",
        [
            ("seed", "3"),
            ("seed", {"a": 1}),
            ("train.batch", 1.5),
            ("train.nope", 3),
            ("nope", 3),
            (7, 3),
            ("tokenizer.nope", 3),
            ("tokenizer", None),
            ("tokenizer", {}),
            ("tokenizer.type", ["pixels"]),
            ("schedule", None),
            ("evaluation.metrics", "fd-animals"),
            ("evaluation.metrics", [1]),
            ("train.clip", float("nan")),
        ],
        ids=str,
    )
    def test_values_that_do_not_fit(self, path: str, value: object, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            config.read(Run, changed(tmp_path, str(path), value))
        assert str(path).rpartition(".")[2] in str(caught.value) or "tokenizer" in str(caught.value)


# Overrides that contradict the rest, and a word of the message for each field that is named.
CONTRADICTIONS = [
    (["train.condition_dropout=0"], ["sampling.guidance.scale", "train.condition_dropout"]),
    (["evaluation.every=100", "evaluation.metrics="], ["evaluation.every", "evaluation.metrics"]),
    (["schedule.warmup=100", "schedule.decay_start=50"], ["schedule.warmup", "decay_start"]),
    (["schedule.final=2"], ["schedule.final"]),
    (["schedule.decay_end=10", "schedule.decay_start=20"], ["schedule.decay_end", "decay_start"]),
]


class TestContradictions:
    @pytest.mark.parametrize("overrides, named", CONTRADICTIONS, ids=str)
    def test_between_fields(self, overrides: list[str], named: list[str]) -> None:
        run = override("schedule.warmup=0", *overrides)
        with pytest.raises(ConfigError) as caught:
            check(run)
        assert all(name in str(caught.value) for name in named)

    @pytest.mark.parametrize(
        "argument",
        ["train.images=0", "train.batch=0", "train.batch=-1", "train.ema=1", "train.ema=-0.1"]
        + ["train.condition_dropout=1", "train.clip=0", "train.log_every=0", "train.keep=0"]
        + ["train.images=8", "train.sample_every=-1", "train.precision=fp16", "sampling.steps=0"]
        + ["sampling.solver=rk4", "sampling.guidance.low=0.95", "sampling.guidance.scale=-1"]
        + ["evaluation.samples=0", "evaluation.every=-1", "optimiser.lr=-1", "seed=-1"]
        + ["seed=9223372036854775808", "name=../escape", "name=", "sampling.guidance.scale=inf"]
        + ["sampling.shift_base=0", "objective.shift_base=-5"]
        + ["machine.micro_batch=0", "machine.threads=0", "machine.workers=-1"],
    )
    def test_ranges(self, argument: str) -> None:
        field = argument.partition("=")[0].rpartition(".")[2]
        with pytest.raises(ConfigError, match=field):
            override(argument)

    @pytest.mark.parametrize("name", recipes.names())
    def test_presets_have_none(self, name: str) -> None:
        check(recipes.preset(name))


class TestDifferences:
    @pytest.mark.parametrize(
        "one, other",
        [("animals", "scenes"), ("imagenet", "t2i")],
    )
    def test_a_task_is_at_most_twelve_lines(self, one: str, other: str) -> None:
        shared = set(recipes.methods_of(one)) & set(recipes.methods_of(other))
        assert shared
        for method in shared:
            rows = config.differences(
                *(recipes.preset(f"{task}/{method}") for task in (one, other))
            )
            assert 0 < len(rows) <= 12

    def test_rows(self) -> None:
        other = override("seed=1", "optimiser=adamw")
        rows = {path: values for path, *values in config.differences(RUN, other)}
        assert rows["seed"] == [42, 1] and rows["optimiser"] == ["muon", "adamw"]
        # Fields of only one of the two parts say nothing; those of both do.
        assert rows["optimiser.lr"] == [RUN.optimiser.lr, 2e-4]
        assert "optimiser.momentum" not in rows
        assert not config.differences(RUN, RUN)

    def test_digest(self) -> None:
        assert config.digest(RUN) == config.digest(recipes.preset("animals/pixels-v"))
        assert config.digest(override("seed=1")) != config.digest(RUN)
        same = override("machine.threads=7", "machine.micro_batch=4", "evaluation.metrics=kid")
        assert config.digest(same.identity()) == config.digest(RUN.identity())
        fewer = override("evaluation.samples=9")
        assert config.digest(fewer.identity()) != config.digest(RUN.identity())


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RUN.train.batch = 3


class TestSwitches:
    """Terms: optional parts, off unless turned on."""

    @pytest.fixture
    def target(self, monkeypatch: pytest.MonkeyPatch) -> type:
        for kind in registry.FOLDERS:
            registry.entries(kind)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

        @registry.register("term", "extra", summary="a test")
        @chz.chz
        class Extra:
            weight: float = 0.5
            depth: int = 8

        terms = config.switches("term")

        fields = {"seed": chz.field(default=0), "terms": chz.field(default_factory=terms)}
        return chz.chz(
            type("Small", (), {"__annotations__": {"seed": int, "terms": terms}} | fields)
        )

    def test_off_at_first(self, target: type, tmp_path: Path) -> None:
        assert target().terms.extra is None
        config.write(target(), tmp_path / "a.yaml")
        assert config.read(target, tmp_path / "a.yaml") == target()

    def test_on(self, target: type, tmp_path: Path) -> None:
        made = config.override(target(), ["terms.extra=on"])
        assert (made.terms.extra.weight, made.terms.extra.depth) == (0.5, 8)
        config.write(made, tmp_path / "a.yaml")
        assert config.read(target, tmp_path / "a.yaml") == made
        assert config.override(made, ["terms.extra=off"]) == target()
        assert config.make(target, config.flatten(made)) == made

    @pytest.mark.parametrize(
        "arguments",
        [["terms.extra.weight=2"], ["terms.extra=on", "terms.extra.weight=2"]]
        + [["terms.extra.weight=2", "terms.extra=on"]],
        ids=str,
    )
    def test_fields(self, target: type, arguments: list[str]) -> None:
        made = config.override(target(), arguments)
        assert made.terms.extra.weight == 2.0
        # A later override keeps what was set.
        assert config.override(made, ["terms.extra.depth=4"]).terms.extra.weight == 2.0

    @pytest.mark.parametrize("code", ["yes", "os:system", "lambda: 1", "True"])
    def test_nothing_but_on_and_off(self, target: type, code: str) -> None:
        with pytest.raises(ConfigError, match=f"^terms.extra={code}: choose on or off"):
            config.override(target(), [f"terms.extra={code}"])

    def test_off_with_fields_is_a_contradiction(self, target: type) -> None:
        said = "^terms.extra=off contradicts terms.extra.weight=2; leave one of them out$"
        with pytest.raises(ConfigError, match=said):
            config.override(target(), ["terms.extra=off", "terms.extra.weight=2"])


def test_tiny_run_is_a_run() -> None:
    check(tiny_run())
    check(tiny_run("scenes/pixels-x"))
