"""`nanogen tokenizer train`, and a diffusion model on the tokenizer that it ends in."""

from __future__ import annotations

import pytest
from tiny import checkpoints, final, trained, unclocked, unlike
from tiny import tiny as tiny_diffusion
from tiny_stage1 import RAE, TINY, VAE

from nanogen import config
from nanogen.cli.tokenizer_train import main
from nanogen.errors import CheckpointError, ConfigError, UserError

pytest.importorskip("diffusers")


def command(capsys, preset, *overrides, **options) -> str:
    given = {"source": None, "fresh": False, "max_minutes": None, **options}
    main(preset, list(overrides), **given)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "own", "latent"),
    [("animals/vae", VAE, "4x7x7"), ("animals/rae", RAE, "64x7x7")],
    ids=["vae", "rae"],
)
def test_trains_stops_continues_and_is_used(tmp_path, capsys, preset, own, latent):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [preset, *TINY, *own]
    said = command(capsys, *arguments, out=whole)
    assert f"images of 28 px in {latent}" in said
    said = command(capsys, *arguments, out=cut, max_minutes=0)
    assert "stopped by the time limit at 8 images; the same command continues" in said
    assert "done" not in said and checkpoints(cut) == [8]
    # The file of a run is as good as its preset.
    said = command(capsys, None, source=cut / "run.yaml", out=cut)
    assert unlike(final(whole), final(cut)) == [] and unclocked(whole) == unclocked(cut)
    assert {p.name for p in (cut / "samples").iterdir()} == {
        f"{seen:012d}.png" for seen in (32, 64)
    }
    use = said.partition("use it with: ")[2].split()
    assert any(str(cut / "tokenizer") in one for one in use)
    run = tiny_diffusion("animals/pixels-v", "train.images=16", "train.log_every=8")
    trained(config.override(run, use), tmp_path / "diffusion")
    assert [line["seen"] for line in unclocked(tmp_path / "diffusion")] == [8, 16]


def test_fresh_starts_over_and_another_run_is_refused(tmp_path, capsys):
    arguments = ["animals/vae", *TINY, *VAE, "train.images=40"]
    command(capsys, *arguments, out=tmp_path)
    assert (tmp_path / "tokenizer" / "config.json").exists()
    with pytest.raises(CheckpointError, match="seed: 42 there, 1 here"):
        command(capsys, *arguments, "seed=1", out=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    command(capsys, *arguments, "seed=1", out=tmp_path, fresh=True, max_minutes=0)
    assert checkpoints(tmp_path) == [8] and not (tmp_path / "tokenizer").exists()
    assert (tmp_path / "notes.txt").exists()


def test_where_the_data_lies_is_asked_for_by_no_field_of_another_command(tmp_path, capsys):
    for given, message in (
        ("data.path=/nowhere", "cannot list '/nowhere'.*; set the data's path to a folder"),
        ("data.path=", "the data has no place; set its path"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            command(capsys, "imagenet/rae-dinov2-vit-b", given, "machine.device=cpu", out=tmp_path)
        assert "task.data" not in str(caught.value)


def test_what_the_command_refuses(tmp_path, capsys):
    for preset, options, message in (
        (None, {}, "name a training, or a file with --from; known: animals/vae"),
        ("animals/vea", {}, "did you mean animals/vae"),
        ("animals/vae", {"max_minutes": -1.0}, "--max-minutes -1.0: must be 0 or more"),
        ("animals/vae", {"source": tmp_path / "run.yaml"}, "give one of them"),
        (None, {"source": tmp_path / "run.yaml"}, "run.yaml does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            command(capsys, preset, out=tmp_path, **options)
    assert not list(tmp_path.iterdir())
