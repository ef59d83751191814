"""`nanogen prepare`: what there is, what is needed, and what is said when it fails."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import Excerpt
from PIL import Image
from torch import Tensor

from nanogen import registry, store
from nanogen.bench import assets, doctor
from nanogen.cli import app
from nanogen.data.animals import Animals
from nanogen.data.base import as_stored
from nanogen.encoders.animals_cnn import AnimalsCnn
from nanogen.errors import ConfigError
from nanogen.metrics.base import Context, Metric, Observation, Option, Score
from nanogen.metrics.frechet import FdAnimals
from nanogen.prompts.base import PromptSet
from nanogen.store import Asset

Run = Callable[..., tuple[int, str, str]]

A, B, C, D = (Asset(f"thing-{n}", f"thing {n}", "MIT", url=f"https://x/{n}.bin") for n in "abcd")


class Prompts(PromptSet):
    name, images, assets = "things", 1, (C,)
    texts = ("a thing",)


class Network:
    weights = D


class Few:
    """A data set of a few silhouettes."""

    def build(self) -> Excerpt:
        return Excerpt(Animals().build(), {"train": 70})


class Measured(Metric):
    name, version, task = "thing-a", 1, "any"
    assets = (A, B)
    prompts = "things"
    options = {"of": Option("which", "b", ("b", "d")), "free": Option("any word", "x")}

    def __init__(self, context: Context, chosen: dict[str, str] | None = None) -> None:
        super().__init__(context, chosen)
        self.assets = (A, {"b": B, "d": D}[self.chosen["of"]])

    def update(self, seen: Observation) -> None:
        raise NotImplementedError

    def compute(self, sums: object, rows: object) -> dict[str, Score]:
        raise NotImplementedError


class Bare(Measured):
    name, assets, prompts, options = "bare", (), "", {}

    def __init__(self, context: Context, chosen: dict[str, str] | None = None) -> None:
        Metric.__init__(self, context, chosen)


@pytest.fixture(autouse=True)
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in a folder of the test, and a registry with these things only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    known = [
        registry.Entry(kind, target.name, target, "", "MIT", "")
        for kind, target in (
            *(("metric", metric) for metric in (Measured, Bare, FdAnimals)),
            ("prompts", Prompts),
        )
    ]
    known.append(registry.Entry("network", "net", Network, "", "MIT", ""))
    known.append(registry.Entry("data", "few", Few, "", "MIT", ""))
    real = registry.entries

    def entries(kind: str) -> list[registry.Entry]:
        if kind in ("metric", "prompts"):
            return [entry for entry in known if entry.kind == kind]
        bundled = [entry for entry in real(kind) if kind == "data" or entry.name == "animals-cnn"]
        return bundled + [entry for entry in known if entry.kind == kind]

    monkeypatch.setattr(registry, "entries", entries)


@pytest.fixture
def nanogen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `nanogen ARGUMENTS` in this process; (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nanogen", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def rows(out: str) -> dict[str, dict[str, object]]:
    """The rows of the one table that was printed, by the first column."""
    (table,) = json.loads(out)
    titles = [column["title"] for column in table["columns"]]
    found = [dict(zip(titles, (c["value"] for c in row), strict=True)) for row in table["rows"]]
    return {row[titles[0]]: row for row in found}


def test_all_assets_of_the_package_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    known = assets.known()
    assert {"geneval-prompts", "dpg-bench", "genai-bench-1600", "genai-bench-527"} <= set(known)
    for asset in known.values():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", asset.name) and asset.name != "stats"
        assert asset.what and asset.licence and not (asset.url and asset.hub)
        assert asset.url or asset.files
        assert re.fullmatch(r"[0-9a-f]{0,64}", asset.sha256)
        assert not asset.url or asset.url.startswith("https://") and asset.file


def test_what_is_known_and_needed() -> None:
    assert assets.known() == {one.name: one for one in (A, B, C, D)}
    assert assets.owners() == {"thing-a": (A, B, C, D), "things": (C,), "net": (D,)}
    assert set(assets.needed("thing-a")) == {A, B, C}
    assert set(assets.needed("thing-a[of=d]")) == {A, D, C}
    assert assets.needed("things") == (C,) and assets.needed("thing-d") == (D,)
    assert assets.needed("net") == (D,)
    for name, message in (
        ("bare", "bare needs nothing that has to be prepared"),
        ("animals-cnn", "animals-cnn needs nothing"),
        ("think-d", "nothing called 'think-d' can be prepared; did you mean thing-d"),
        ("thing-a[off=d]", "has no option 'off'; did you mean of"),
        ("thing-a[of=c]", "of=c; known: b, d"),
    ):
        with pytest.raises(ConfigError, match=message):
            assets.needed(name)


def test_two_assets_of_one_name_are_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prompts, "assets", (Asset("thing-a", "another", "MIT", url="https://y/z"),))
    with pytest.raises(ValueError, match="two assets are called 'thing-a'"):
        assets.known()


def test_prepare_from_a_file_and_list(nanogen: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_bytes(b"weights")
    status, out, err = nanogen("prepare", "thing-d", "--from", file, "--json")
    found = store.find(D)
    assert (status, err) == (0, "")
    assert rows(out)["thing-d"] == {
        "asset": "thing-d",
        "what": "thing d",
        "for": "thing-a, net",
        "licence": "MIT",
        "size": None,
        "prepared": "yes",
        "sha256": found.sha256[:12],
        "full sha256": found.sha256,
        "path": str(found.path),
        "source": "https://x/d.bin",
    }
    # Its metric is called as it is: with --from the asset is meant.
    assert nanogen("prepare", "thing-a", "--from", file)[0] == 0
    found.path.write_bytes(b"changed")
    store._found.clear()
    status, out, _ = nanogen("prepare", "--list", "--json")
    states = {name: row["prepared"] for name, row in rows(out).items()}
    assert states == {"thing-a": "yes", "thing-b": "no", "thing-c": "no", "thing-d": "broken"}
    status, out, _ = nanogen("prepare", "--list")
    assert status == 0 and "run: nanogen prepare thing-d" in " ".join(out.split())
    told = {row[0].value: row[1].value for row in doctor.table().rows}
    assert told["published assets"] == f"1 of 4 prepared, 1 broken, in {store.root()}"


def test_prepare_all_that_a_metric_needs(nanogen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(url: str, target: Path) -> None:
        fetched.append(url)
        target.write_text(url)

    monkeypatch.setattr(store.download, "from_url", fetch)
    status, out, err = nanogen("prepare", "thing-a[of=d]", "things", "--json")
    assert (status, err) == (0, "") and set(rows(out)) == {"thing-a", "thing-c", "thing-d"}
    assert sorted(fetched) == [A.url, C.url, D.url]
    assert nanogen("prepare", "thing-a")[0] == 0
    assert fetched[3:] == [B.url]  # the others are there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to prepare; nanogen prepare --list shows what there is"),
        (["--list", "thing-a"], "--list shows every asset"),
        (["thing-a", "things", "--from", "x"], "--from goes with one name"),
        (["thing-a[of=d]", "--from", "x"], "needs thing-a, thing-d, thing-c; prepare them one by"),
        (["thing-d", "--from", "/none"], "--from /none: there is no such file or folder"),
        (["thing-d", "--network", "n"], "go with: nanogen prepare stats FOLDER"),
        (["stats"], "write: nanogen prepare stats FOLDER --network NETWORK --name NAME"),
        (["stats", "x", "--network", "animals-cnn"], "write: nanogen prepare stats FOLDER"),
        (["stats", "x", "--from", "y"], "stats are made of images; leave --from out"),
        (["stats", "x", "--network", "animal-cnn", "--name", "a"], "did you mean animals-cnn"),
        (["stats", "x", "--network", "animals-cnn", "--name", "A/b"], "write lower case letters"),
        (
            ["stats", "x", "--network", "net", "--name", "a"],
            "--network net: no metric takes statistics of it; choose animals-cnn",
        ),
        (
            ["stats", "animals", "--network", "animals-cnn", "--name", "a", "--size", 8],
            "--size has",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line(nanogen: Run, arguments: list[object], message: str) -> None:
    status, out, err = nanogen("prepare", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err


def moments(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of the pooled features of animals-cnn, by numpy."""
    pool = AnimalsCnn()(images)["pool"].double().numpy()
    return pool.mean(0), np.cov(pool, rowvar=False)


def test_statistics_of_a_folder(nanogen: Run, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    images = torch.randint(256, (3, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    for number, image in enumerate(images):
        wide = np.pad(image.permute(1, 2, 0).numpy(), ((0, 0), (6, 6), (0, 0)))
        Image.fromarray(wide).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no image")
    command = ("prepare", "stats", folder, "--network", "animals-cnn", "--name", "mine")
    command = (*command, "--size", 28, "--device", "cpu")
    status, out, err = nanogen(*command, "--json")
    assert (status, err) == (0, "")
    file = tmp_path / "cache" / "nanogen" / "statistics" / "mine.npz"
    assert rows(out) == {
        "mine": {
            "statistics": "mine",
            "network": "animals-cnn",
            "images": 3,
            "for": "fd-animals[reference=mine]",
            "file": str(file),
        }
    }
    assert "1 broken images are left out: bad.png" in out
    found, (mean, covariance) = np.load(file), moments(images)
    np.testing.assert_allclose(found["mu"], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["sigma"], covariance, rtol=1e-5, atol=1e-6)
    assert (found["sigma"].dtype, int(found["n"]), str(found["network"])) == (
        np.float64,
        3,
        "animals-cnn",
    )
    status, _, err = nanogen(*command)
    assert status == 2 and "choose another name" in err


def test_statistics_of_a_data_set(nanogen: Run) -> None:
    command = ("prepare", "stats", "few", "--network", "animals-cnn", "--name", "few")
    status, out, err = nanogen(*command, "--device", "cpu", "--json")
    assert (status, err) == (0, "")
    assert rows(out)["few"]["images"] == 70
    source = Few().build()
    images = torch.stack([as_stored(source, "train", i) for i in range(70)])
    found, (mean, _) = np.load(str(rows(out)["few"]["file"])), moments(images)
    np.testing.assert_allclose(found["mu"], mean, rtol=1e-5, atol=1e-6)
