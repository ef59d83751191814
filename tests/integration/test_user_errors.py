"""What a user can get wrong: one clear line on stderr, status 2, no traceback, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny import command, final, invoke, overrides, tiny, trained, unlike

from nanogen import config
from nanogen.bench import record
from nanogen.bench.record import Record


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """`animals` and `scenes`, each trained for two steps; `new` has no checkpoint yet."""
    folder = tmp_path_factory.mktemp("runs")
    for preset in ("animals/pixels-v", "scenes/pixels-v"):
        more = ("conditioner=words",) if preset.startswith("scenes") else ()
        trained(tiny(preset, "train.images=16", *more), folder / preset.partition("/")[0])
    (folder / "new").mkdir()
    config.write(tiny("animals/pixels-v"), folder / "new" / "run.yaml")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, runs) -> Path:
    """The working folder of a command, with the runs in `runs` and files that are wrong."""
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to(runs)
    Path("file").write_text("in the way")
    Path("empty").mkdir()
    Path("latin.txt").write_bytes("un h\xe9risson".encode("latin-1"))
    Path("blank.txt").write_text("\n  \n")
    for colour in ("red", "blue"):
        Path("images", colour).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (28, 28), colour).save(Path("images", colour, f"{number}.png"))
    for number in range(60):
        for folder in ("classes/cow", "classes/elefant", "classes/one/crw", "captioned"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, f"{number}.png").symlink_to(Path("images/red/0.png").resolve())
        Path("captioned", f"{number}.txt").write_text("a small house")
    record.write(Path(), Record("r", "images", "m", "fid", 1, 9.0, None, 9, False))
    next(Path().glob("*.record.json")).rename("fid.record.json")
    Path("broken").mkdir()
    Path("broken", "0.png").write_bytes(Path("images/red/0.png").read_bytes()[:60])
    tree = config.dump(tiny("animals/pixels-v"))
    Path("extra.yaml").write_text(yaml.safe_dump(tree | {"sed": 1}))
    Path("code.yaml").write_text(yaml.safe_dump(tree | {"backbone": {"type": "os:system"}}))
    Path("typeless.yaml").write_text(yaml.safe_dump(tree | {"backbone": {"depth": 1}}))
    Path("tag.yaml").write_text("!!python/object/apply:os.system ['touch owned']")
    Path("list.yaml").write_text("[1, 2]")
    Path("binary.yaml").write_bytes(b"\x80\x81\x00")
    return tmp_path


TRAIN = ["train", "animals/pixels-v"]
CASES: dict[str, tuple[list[str], str]] = {
    "unknown command": (["trian"], "No such command 'trian'"),
    "missing argument": (["sample"], "Missing argument"),
    "too many arguments": (["report", "a", "b"], "unexpected extra argument"),
    "unknown option": ([*TRAIN, "--sed", "3"], "No such option: --sed"),
    "no preset": (["train"], "name a preset, such as animals/pixels-v"),
    "unknown preset": (["train", "animal/pixels-v"], "did you mean animals/pixels-v"),
    "preset and file": ([*TRAIN, "--from", "extra.yaml"], "give one of them"),
    "misspelt override": ([*TRAIN, "train.imags=64"], "train.imags'; Did you mean 'train.images'"),
    "override of nothing": ([*TRAIN, "images"], "'images' is not an override; write field=value"),
    "unknown part": ([*TRAIN, "backbone=dtt"], "unknown backbone 'dtt'; did you mean ddt?"),
    "part by import path": ([*TRAIN, "backbone=os:system"], "unknown backbone 'os:system'"),
    "wrong type": ([*TRAIN, "train.batch=many"], "train.batch=many does not fit"),
    "wrong type in a list": ([*TRAIN, "optimiser=adamw", "optimiser.betas=0.9"], "optimiser.betas"),
    "out of range": ([*TRAIN, "train.ema=1.5"], "train.ema=1.5: must lie in [0, 1)"),
    "negative": ([*TRAIN, "train.batch=-8"], "train.batch=-8: must be at least 1"),
    "zero workers of nothing": ([*TRAIN, "machine.workers=-1"], "machine.workers"),
    "no such choice": ([*TRAIN, "schedule.shape=cubic"], "schedule.shape=cubic does not fit"),
    "contradiction": ([*TRAIN, "train.condition_dropout=0"], "needs train.condition_dropout above"),
    "no effect": ([*TRAIN, "evaluation.metrics=", "evaluation.every=64"], "has no effect without"),
    "less than a step": ([*TRAIN, "train.images=8"], "less than one step of train.batch=32"),
    "schedule": ([*TRAIN, "schedule.warmup=64", "schedule.decay_start=32"], "schedule.warmup=64"),
    "unfit patch": ([*TRAIN, "tokenizer.patch=5"], "tokenizer.patch=5"),
    "unfit heads": ([*TRAIN, "backbone.heads=7"], "backbone.heads=7"),
    "unknown metric": ([*TRAIN, "evaluation.metrics=fids"], "unknown metric 'fids'; did you mean"),
    "metric of the other task": ([*TRAIN, "evaluation.metrics=scene-eval"], "is for text_to_image"),
    "too few samples": ([*TRAIN, "evaluation.samples=9"], "needs at least 256 samples, not 9"),
    "too few evaluated": (
        ["eval", "runs/animals", "--metrics", "fd-animals", "evaluation.samples=9"],
        "needs at least 256 samples, not 9",
    ),
    "no cuda": ([*TRAIN, "machine.device=cuda"], "torch sees no CUDA device"),
    "unknown device": ([*TRAIN, "machine.device=gpu"], "machine.device='gpu'"),
    "missing ImageNet": (["train", "imagenet/jit"], "data/imagenet/train"),
    "missing BLIP-3o": (["train", "t2i/jit"], "data/blip3o"),
    "missing folder": ([*TRAIN, "task.data=folder", "task.data.path=gone"], "'gone'"),
    "no path": ([*TRAIN, "task.data=folder"], "the data has no place; set its path"),
    "folder without images": ([*TRAIN, "task.data=folder", "task.data.path=empty"], "no images"),
    "folder without classes": (
        [*TRAIN, "task.data=folder", "task.data.path=images/red"],
        "put images into one folder for each class",
    ),
    "folder without captions": (
        ["train", "scenes/pixels-v", "task.data=folder", "task.data.path=images"],
        "no captions",
    ),
    "output is a file": ([*TRAIN, "--out", "file"], "cannot write to file: File exists"),
    "output below a file": ([*TRAIN, "--out", "file/run"], "cannot write to file/run"),
    "run of another config": (
        [*TRAIN, *overrides("animals/pixels-v", "seed=7"), "--out", "runs/animals"],
        "holds another run (seed: 42 there, 7 here",
    ),
    "no such file": (["train", "--from", "gone.yaml"], "gone.yaml does not exist"),
    "unknown field in a file": (["train", "--from", "extra.yaml"], "unknown field 'sed'"),
    "import path in a file": (["train", "--from", "code.yaml"], "unknown backbone 'os:system'"),
    "part without a type": (
        ["train", "--from", "typeless.yaml"],
        "names no part; write type: <name>",
    ),
    "code in a file": (["train", "--from", "tag.yaml"], "tag.yaml is not a readable config"),
    "list in a file": (["train", "--from", "list.yaml"], "it holds list, not fields"),
    "bytes in a file": (["train", "--from", "binary.yaml"], "binary.yaml is not a readable config"),
    "folder as a file": (["train", "--from", "empty"], "empty"),
    "not a run": (["sample", "empty"], "empty is not a run folder"),
    "no such run": (["sample", "gone"], "gone is not a run folder"),
    "no checkpoint yet": (["sample", "runs/new"], "has no checkpoint yet"),
    "evaluating no checkpoint": (["eval", "runs/new", "--metrics", "is-animals"], "no checkpoint"),
    "weights": (["sample", "runs/animals", "--weights", "best"], "--weights 'best': choose ema or"),
    "class out of range": (["sample", "runs/animals", "--classes", "10"], "there is no class 10"),
    "unknown class": (["sample", "runs/animals", "--classes", "cta"], "did you mean cat"),
    "not a range": (["sample", "runs/animals", "--classes", "3-"], "--classes '3-'"),
    "no classes": (["sample", "runs/animals", "--classes", ""], "--classes"),
    "seeds": (["sample", "runs/animals", "--seeds", "a"], "--seeds 'a': write whole numbers"),
    "seeds backwards": (["sample", "runs/animals", "--seeds", "5-2"], "is empty or too long"),
    "caption of a class run": (["sample", "runs/animals", "--prompt", "a cat"], "use --classes"),
    "class of a caption run": (["sample", "runs/scenes", "--classes", "1"], "use --prompt"),
    "two requests": (
        ["sample", "runs/scenes", "--classes", "1", "--prompt", "a"],
        "contradict each other",
    ),
    "wrong encoding": (["sample", "runs/scenes", "--prompts", "latin.txt"], "is not UTF-8 text"),
    "no captions in a file": (["sample", "runs/scenes", "--prompts", "blank.txt"], "no captions"),
    "no file of captions": (["sample", "runs/scenes", "--prompts", "gone"], "cannot read gone"),
    "samples to a file": (["sample", "runs/animals", "--out", "file"], "cannot write to file"),
    "unfit override": (["sample", "runs/animals", "backbone.width=64"], "does not fit this run"),
    "unknown solver": (["sample", "runs/animals", "sampling.solver=eulr"], "did you mean euler"),
    "nothing to evaluate": (["eval"], "give one of a run folder, --images, --pipeline"),
    "too much to evaluate": (
        ["eval", "runs/animals", "--images", "images"],
        "not a run folder and --images",
    ),
    "reference of a run": (
        ["eval", "runs/animals", "--reference", "animals/vae"],
        "--reference has no effect on a run",
    ),
    "prompts without a pipeline": (
        ["eval", "--images", "images/red", "--prompts", "file"],
        "--prompts has no effect without --pipeline",
    ),
    "weights of images": (
        ["eval", "--images", "images/red", "--weights", "raw"],
        "--weights raw has no effect without a run",
    ),
    "option of a metric": (
        ["eval", "runs/animals", "--metrics", "fd-animals[seed=1]"],
        "metric fd-animals has no option 'seed'",
    ),
    "images of no prompt": (
        ["eval", "runs/animals", "--metrics", "is-animals", "evaluation.images_per_prompt=2"],
        "evaluation.images_per_prompt has no effect: is-animals bring no prompts",
    ),
    "metric twice": (
        ["eval", "runs/animals", "--metrics", "is-animals,is-animals"],
        "metric is-animals is named twice",
    ),
    "empty metric": (["eval", "runs/animals", "--metrics", "is-animals,"], "has an empty name"),
    "repeats of images": (
        ["eval", "--images", "images/red", "--metrics", "is-animals", "evaluation.repeats=2"],
        "evaluation.repeats has no effect on images that are there",
    ),
    "no metrics": (["eval", "runs/animals"], "names no metrics; give some with --metrics"),
    "evaluating another metric": (
        ["eval", "runs/animals", "--metrics", "scene-eval"],
        "is for text_to_image tasks",
    ),
    "evaluating no images": (["eval", "--images", "empty"], "no images in empty"),
    "evaluating no folder": (["eval", "--images", "gone"], "gone does not exist"),
    "too few images": (
        ["eval", "--images", "images/red", "--metrics", "fd-animals"],
        "not 12; images/red holds 12: 244 more images are needed",
    ),
    "too few images for any metric": (
        ["eval", "--images", "images/red"],
        "accuracy-animals suits these images; name some with --metrics",
    ),
    "images of a class of another name": (
        ["eval", "--images", "classes", "--metrics", "accuracy-animals"],
        "the folder 'elefant' in classes is none of the 10 classes; did you mean elephant?",
    ),
    "images of one class of another name": (
        ["eval", "--images", "classes/one", "--metrics", "accuracy-animals"],
        "the folder 'crw' in classes/one is none of the 10 classes; did you mean cow",
    ),
    "images without captions": (
        ["eval", "--images", "classes", "--metrics", "scene-eval"],
        "scene-eval needs images with captions",
    ),
    "captions of no scene": (
        ["eval", "--images", "captioned", "--metrics", "scene-eval"],
        "'a small house' is not a caption of a scene",
    ),
    "reference that is not there, of a run without the weights": (
        ["eval", "runs/animals", "--metrics", "fid[reference=nix]", "evaluation.samples=5000"],
        "there is no reference 'nix' of inception-2015",
    ),
    "metric of a run that is not there": (
        ["eval", "gone", "--metrics", "is-animal"],
        "unknown metric 'is-animal'; did you mean is-animals",
    ),
    "compared with another score": (
        ["eval", "runs/animals", "--metrics", "is-animals", "--compare", "fid.record.json"],
        "--compare fid.record.json has no score of is-animals, only of fid",
    ),
    "compared with no record": (
        ["eval", "runs/animals", "--metrics", "is-animals", "--compare", "extra.yaml"],
        "extra.yaml is not a record",
    ),
    "unknown reference": (
        ["eval", "--images", "images/red", "--reference", "animals"],
        "unknown preset 'animals'",
    ),
    "unknown benchmark": (["bench", "animal"], "unknown benchmark 'animal'; did you mean animals?"),
    "unknown budget": (["bench", "--budget", "fast"], "unknown budget 'fast'"),
    "unknown method": (["bench", "--methods", "pixels"], "did you mean pixels-"),
    "no jobs": (["bench", "--jobs", "0", "--out", "b"], "--jobs 0: must be at least 1"),
    "benchmark to a file": (["bench", "--out", "file"], "cannot write to file"),
    "report of nothing": (["report", "empty"], "empty holds no run"),
    "report of no folder": (["report", "gone"], "gone does not exist"),
    "report of no records": (["report", "runs/animals"], "holds no records yet"),
    "leaderboard of no folder": (["leaderboard", "gone"], "gone does not exist"),
    "leaderboard of no record": (["leaderboard", "extra.yaml"], "extra.yaml is not a record"),
    "leaderboard of nothing": (["leaderboard", "empty"], "empty has no records"),
    "correlation of no record": (["correlate", "extra.yaml"], "extra.yaml is not a record"),
    "comparing no record": (
        ["compare", "extra.yaml", "fid.record.json"],
        "extra.yaml is not a record",
    ),
    "comparing records with none": (["compare", "fid.record.json", "empty"], "empty has no record"),
    "comparing nothing": (["compare", "gone", "empty"], "gone does not exist"),
    "correlating nothing": (["correlate", "gone"], "gone does not exist"),
    "listing nothing": (["ls", "preset"], "nothing is called 'preset'; did you mean presets"),
    "difference to nothing": (["diff", "animals/pixels-v", "gone"], "unknown preset 'gone'"),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES)
def test_one_clear_line(place, monkeypatch, capsys, caplog, arguments, message):
    made = {path.name for path in place.iterdir()}
    assert invoke(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert not caplog.records
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err
    assert out == ""
    # A command that is refused leaves nothing behind.
    assert {path.name for path in place.iterdir()} - made <= {"runs"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "fd-animals", "evaluation.samples=9"], "set evaluation.samples=256"),
        (["--metrics", "scene-eval"], "is for text_to_image tasks"),
        (["--metrics", "fid", "evaluation.samples=5000"], "nanogen prepare"),
        (["--metrics", "fid,fids"], "unknown metric 'fids'"),
    ],
)
def test_no_network_is_opened_for_metrics_that_are_refused(
    place, monkeypatch, capsys, arguments, message
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setattr("nanogen.evaluation.runs.open_run", lambda *given: pytest.fail("opened"))
    assert invoke(monkeypatch, "eval", "runs/animals", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_refused_run_is_intact(place, monkeypatch, capsys):
    before = final(place / "runs" / "animals")
    text = (place / "runs" / "animals" / "run.yaml").read_text()
    invoke(monkeypatch, *CASES["run of another config"][0])
    assert unlike(before, final(place / "runs" / "animals")) == []
    assert (place / "runs" / "animals" / "run.yaml").read_text() == text


def test_a_broken_image_is_named(place, monkeypatch, capsys):
    """Whether it is read by the trainer or by a process that reads ahead."""
    for number in range(12):
        file = place / "images" / "red" / f"{number}.png"
        file.write_bytes(file.read_bytes()[:60])
    arguments = [*TRAIN, *overrides("animals/pixels-v", "task.data=folder")]
    arguments += ["task.data.path=images", "task.data.size=28"]
    for workers in ("0", "1"):
        more = [f"machine.workers={workers}", "--out", f"run-{workers}"]
        assert invoke(monkeypatch, *arguments, *more) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert "cannot be decoded" in err and "images/red/" in err


def test_fresh_spares_what_is_not_ours(place, monkeypatch, capsys):
    (place / "mine" / "samples").mkdir(parents=True)
    (place / "mine" / "samples" / "dear.png").touch()
    arguments = [*TRAIN, *overrides("animals/pixels-v", "train.images=16"), "--out", "mine"]
    assert invoke(monkeypatch, *arguments, "--fresh") == 0
    assert (place / "mine" / "samples" / "dear.png").exists()
    assert invoke(monkeypatch, *arguments, "seed=3", "--fresh") == 0
    assert json.loads((place / "mine/log.jsonl").read_text().splitlines()[-1])["seen"] == 16


def test_two_commands_cannot_train_in_one_folder(place, monkeypatch, capsys):
    from nanogen.run_folder import held

    arguments = [*TRAIN, *overrides("animals/pixels-v", "train.images=16"), "--out", "both"]
    with held(place / "both"):
        assert command([*arguments[:-1], str(place / "both")]).returncode == 2
    assert invoke(monkeypatch, *arguments) == 0


@pytest.mark.parametrize("place_of_flag", ["first", "last"])
def test_debug_shows_the_traceback(tmp_path, place_of_flag):
    arguments = ["train", "animal/pixels-v"]
    arguments = ["--debug", *arguments] if place_of_flag == "first" else [*arguments, "--debug"]
    done = command(arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert "\nerror: unknown preset 'animal/pixels-v'" in done.stderr


def test_a_user_error_of_the_real_command(tmp_path):
    done = command(["train", "animal/pixels-v"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown preset 'animal/pixels-v'; "
        "did you mean animals/pixels-v or animals/pixels-x or animals/pixels-perceptual?\n"
    )
