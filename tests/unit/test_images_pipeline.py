"""Pipelines of diffusers, tiny and random, through the code that loads real ones."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
from tiny_pipelines import SIDE, write_pipeline

from nanogen import config
from nanogen.errors import ConfigError, MissingExtra
from nanogen.images.pipeline import Pipeline, noise_seed
from nanogen.images.settings import PipelineConfig
from nanogen.types import Request

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

CPU = torch.device("cpu")
TEXTS = ("a red cow", "two dogs left of a cat", "a bear")
SD, FLOW, DIT = "StableDiffusionPipeline", "StableDiffusion3Pipeline", "DiTPipeline"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: write_pipeline(root / kind, kind) for kind in (SD, FLOW, DIT)}


def pipeline(folder, **fields):
    return Pipeline(str(folder), PipelineConfig(**{"steps": 2, **fields}), CPU)


def request(indices=(4, 7, 40), labels=False):
    keys = torch.tensor(indices)
    if labels:
        return Request(keys, labels=torch.tensor([5, 900, 5])[: len(keys)])
    return Request(keys, texts=TEXTS[: len(keys)])


def drawn(made, wanted):
    found = list(made.draw(wanted))
    assert torch.equal(torch.cat([rows.indices for rows, _ in found]), wanted.indices)
    images = torch.cat([images for _, images in found])
    assert images.dtype == torch.uint8 and images.shape == (len(wanted), 3, SIDE, SIDE)
    return images.int()


@pytest.mark.parametrize("kind", [SD, FLOW, DIT])
def test_a_sample_is_the_same_in_any_batch(folders, kind):
    labels = kind == DIT
    state = torch.get_rng_state()
    three = drawn(pipeline(folders[kind], batch=3), request(labels=labels))
    one = drawn(pipeline(folders[kind], batch=1), request(labels=labels))
    assert (three - one).abs().max() <= 1
    assert torch.equal(torch.get_rng_state(), state), "nobody else is disturbed"
    assert (three[0] - three[1]).abs().max() > 5
    assert (three[0] - three[2]).abs().max() > 5


def test_by_hand(folders):
    """The pipeline of diffusers itself, called for one sample, gives the same picture."""
    theirs = diffusers.DiffusionPipeline.from_pretrained(
        folders[FLOW], text_encoder_3=None, tokenizer_3=None
    )
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(noise_seed(3, 7))
    image = theirs(
        TEXTS[1], num_inference_steps=2, guidance_scale=4.0, negative_prompt="fog",
        generator=generator,
    ).images[0]  # fmt: skip
    ours = pipeline(folders[FLOW], guidance=4.0, negative="fog", seed=3)
    found = drawn(ours, request())[1].permute(1, 2, 0).numpy()
    assert np.abs(found - np.asarray(image).astype(int)).max() <= 1


def test_truncation_on_request(folders):
    made = pipeline(folders[SD])
    (_, rounded), (_, truncated) = (
        next(made.draw(request())),
        next(made.draw(request(), "truncate")),
    )
    difference = rounded.int() - truncated.int()
    assert set(difference.unique().tolist()) == {0, 1}


def test_settings_reach_the_pipeline(folders):
    usual = drawn(pipeline(folders[SD]), request())
    for fields in ({"steps": 3}, {"guidance": 2.0}, {"negative": "fog"}, {"seed": 1}):
        assert not torch.equal(drawn(pipeline(folders[SD], **fields), request()), usual), fields
    ((_, images),) = pipeline(folders[SD], height=24, width=32).draw(request())
    assert images.shape == (3, 3, 24, 32)


def test_no_two_samples_share_their_noise():
    seeds = {noise_seed(0, index) for index in range(50_000)}
    assert len(seeds) == 50_000 and max(seeds) < 2**32
    assert noise_seed(0, 1) != noise_seed(1, 1)


def test_facts(folders):
    made = pipeline(folders[FLOW], guidance=2.5, negative="fog")
    drawn(made, request())
    facts = dict(made.facts)
    revision, defaults = facts.pop("revision"), facts.pop("defaults")
    assert facts == {
        "pipeline": FLOW,
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "dtype": "float32",
        "seed": 0,
        "steps": 2,
        "guidance": 2.5,
        "negative": "fog",
        "height": SIDE,
        "width": SIDE,
        "diffusers": diffusers.__version__,
    }
    assert len(revision) == 16 and "max_sequence_length=256" in defaults
    assert made.kind == "text_to_image" and made.origin == str(folders[FLOW])
    assert made.name == FLOW
    assert json.loads(json.dumps(made.facts)) == made.facts
    usual = Pipeline(str(folders[SD]), PipelineConfig(), CPU)
    assert (usual.facts["steps"], usual.facts["guidance"]) == (50, 7.5)
    assert pipeline(folders[DIT]).kind == "class_conditional"


def test_the_fingerprint_changes_with_files_settings_and_seed(folders, tmp_path):
    folder = shutil.copytree(folders[SD], tmp_path / "copy")
    seen = {pipeline(folder).fingerprint}
    assert pipeline(folder, batch=1).fingerprint in seen
    for fields in ({"steps": 3}, {"seed": 1}, {"negative": ""}, {"dtype": "bfloat16"}):
        seen.add(pipeline(folder, **fields).fingerprint)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("linear", "scaled_linear"))
    seen.add(pipeline(folder).fingerprint)
    assert len(seen) == 6


def test_other_noise_shares_the_weights(folders):
    made = pipeline(folders[SD])
    first = drawn(made, request())
    other = made.reseeded(1)
    assert other._held is made._held and other.fingerprint != made.fingerprint
    assert not torch.equal(drawn(other, request()), first)
    made.close()
    assert torch.equal(drawn(made, request()), first)


def test_noise_beside_the_generators_is_noted(folders, monkeypatch):
    made = pipeline(folders[DIT])
    step = diffusers.DDIMScheduler.step

    def noisy(self, output, time, sample, **given):
        return step(self, output + 0.1 * torch.randn(output.shape), time, sample, **given)

    drawn(made, request(labels=True))
    assert "noise_by_batch" not in made.facts
    monkeypatch.setattr(diffusers.DDIMScheduler, "step", noisy)
    state = torch.get_rng_state()
    first = drawn(made, request(labels=True))
    assert made.facts["noise_by_batch"] is True
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn(made, request(labels=True)), first)


def test_a_safety_checker_is_left_out_and_said(folders, tmp_path):
    folder = edited(
        folders[SD], tmp_path, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]
    )
    made = pipeline(folder)
    assert made.facts["safety_checker"] == "off"
    assert torch.equal(drawn(made, request()), drawn(pipeline(folders[SD]), request()))


def edited(folder, tmp_path, **entries):
    """A copy with other entries in its model_index.json."""
    copy = shutil.copytree(folder, tmp_path / "edited")
    file = copy / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return copy


def refused(match, act):
    with pytest.raises(ConfigError, match=match) as problem:
        act()
    assert "\n" not in str(problem.value)


def test_settings_without_effect(folders):
    refused("pipeline.negative=fog has no effect on a DiTPipeline, which takes no negative_prompt",
            lambda: pipeline(folders[DIT], negative="fog"))  # fmt: skip
    refused("pipeline.true_guidance=2.0 has no effect on a Stable",
            lambda: pipeline(folders[SD], true_guidance=2.0))  # fmt: skip
    refused("pipeline.offload=model has no effect without a GPU",
            lambda: pipeline(folders[SD], offload="model"))  # fmt: skip
    refused("pipeline.revision=main has no effect on .*, which is a folder",
            lambda: pipeline(folders[SD], revision="main"))  # fmt: skip


def test_settings_that_the_pipeline_refuses(folders):
    made = pipeline(folders[FLOW], height=17)
    refused("cannot draw with these settings: .*divisible by 4", lambda: list(made.draw(request())))


def test_what_is_asked_for_must_be_there(folders):
    bare = Request(torch.arange(2))
    refused("draws captions, and there are none", lambda: list(pipeline(folders[SD]).draw(bare)))
    refused("draws classes, not captions", lambda: list(pipeline(folders[DIT]).draw(request())))
    far = Request(torch.arange(1), labels=torch.tensor([5000]))
    refused("cannot draw with these settings", lambda: list(pipeline(folders[DIT]).draw(far)))


def test_values_that_are_not_finite(folders, tmp_path):
    made = pipeline(folders[SD])
    held = made._held.pipeline()
    with torch.no_grad():
        held.vae.decoder.conv_out.bias.fill_(float("nan"))
    refused("not finite; set pipeline.dtype", lambda: list(made.draw(request())))


def test_a_batch_that_is_too_large(folders, monkeypatch):
    made = pipeline(folders[SD])

    def full(*_, **__):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(made._held, "pipeline", lambda: full)
    refused("pipeline.batch=4 .* does not fit .*lower it", lambda: list(made.draw(request())))


def test_folders_that_hold_no_pipeline(folders, tmp_path):
    refused("there is no such folder", lambda: pipeline(tmp_path / "gone"))
    refused("there is no model_index.json", lambda: pipeline(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    refused("holds no pipeline that diffusers can load", lambda: pipeline(tmp_path))
    (tmp_path / "model_index.json").write_text("[]")
    refused("holds no pipeline", lambda: pipeline(tmp_path))
    for name in ("NewPipeline", "os.system", None, "UNet2DConditionModel"):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        refused("does not have; update diffusers", lambda: pipeline(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionUpscalePipeline",
        "QwenImageEditPipeline",
        "TextToVideoSDPipeline",
        "StableAudioPipeline",
        "DDPMPipeline",
    ],
)
def test_pipelines_that_draw_something_else(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    refused(f"is a {name}, which does not draw images from captions", lambda: pipeline(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "Flux2Pipeline",
        "QwenImagePipeline",
        "ZImagePipeline",
        "SanaPipeline",
        "StableDiffusionXLPipeline",
        "PixArtSigmaPipeline",
    ],
)
def test_the_public_models_of_the_paper_and_others(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    made = pipeline(tmp_path)
    assert made.kind == "text_to_image" and made.facts["steps"] == 2


def test_a_weight_file_that_is_missing(folders, tmp_path):
    folder = edited(folders[SD], tmp_path)
    next((folder / "unet").glob("*.safetensors")).unlink()
    made = pipeline(folder)
    refused("holds no pipeline that diffusers can load", lambda: list(made.draw(request())))


def test_pickled_weights_are_not_read(folders, tmp_path):
    folder = edited(folders[SD], tmp_path)
    file = next((folder / "unet").glob("*.safetensors"))
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    file.unlink()
    refused("holds no pipeline", lambda: list(pipeline(folder).draw(request())))


def test_without_diffusers(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match="pip install 'nanogen"):
        pipeline(folders[SD])


def test_overrides():
    made = config.override(PipelineConfig(), ["steps=30", "guidance=3.5", "dtype=bfloat16"])
    assert made == PipelineConfig(steps=30, guidance=3.5, dtype="bfloat16")
    assert made.precision(CPU) == torch.bfloat16
    assert PipelineConfig().precision(CPU) == torch.float32
    assert PipelineConfig().precision(torch.device("cuda")) == torch.bfloat16
    for name in ("steps", "batch", "height", "width"):
        refused(f"pipeline.{name}=0: must be at least 1", partial(PipelineConfig, **{name: 0}))
    refused("pipeline.guidance=nan: must be finite", lambda: PipelineConfig(guidance=float("nan")))
    refused("pipeline.seed=-1", lambda: PipelineConfig(seed=-1))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without the hub, and its empty cache."""
    import huggingface_hub
    from huggingface_hub import constants

    def silent(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", silent)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_id_of_the_hub_is_drawn_from_its_commit(folders, offline):
    stored = offline / "models--someone--tiny"
    shutil.copytree(folders[SD], stored / "snapshots" / COMMIT)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(COMMIT)
    made = pipeline("someone/tiny")
    assert made.facts["revision"] == COMMIT and made.name == "someone/tiny"
    assert torch.equal(drawn(made, request()), drawn(pipeline(folders[SD]), request()))
    assert pipeline("someone/tiny", revision=COMMIT).facts["revision"] == COMMIT
    refused("someone/tiny", lambda: pipeline("someone/tiny", revision="gone"))


def test_an_unknown_id(offline):
    refused("cannot load 'someone/tiny': huggingface.co does not answer.*set --pipeline to",
            lambda: pipeline("someone/tiny"))  # fmt: skip


@pytest.mark.parametrize("kind", [SD, FLOW, DIT])
def test_what_is_recorded_does_not_depend_on_who_drew(folders, kind):
    busy, idle = pipeline(folders[kind]), pipeline(folders[kind])
    drawn(busy, request(labels=kind == DIT))
    idle.look()
    assert idle.facts == busy.facts and idle.facts["height"] == SIDE
