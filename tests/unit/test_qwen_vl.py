"""Qwen-VL without its processor: patches, places and answers as transformers has them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_vqascore import write_qwen
from torch import Tensor

from nanogen.encoders.qwen_vl import QwenVl, Sight, laid_out
from nanogen.errors import ConfigError

CPU = torch.device("cpu")
KINDS = ("qwen2_5_vl", "qwen3_vl")
QUESTIONS = ("Is it?", 'Does this image show "two cows, and a dog behind them"?', "Red?")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> QwenVl:
    return QwenVl(folder, CPU, torch.float32)


def images(count: int, height: int = 50, width: int = 90) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def processor(folder: Path) -> object:
    """transformers' own, of the kind that needs no torchvision."""
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    del fields["image_processor_type"]
    return module.Qwen2VLImageProcessorPil(**fields)


@pytest.mark.parametrize(("height", "width"), [(50, 90), (200, 150), (20, 30), (64, 64)])
def test_patches_are_those_of_the_processor(folder: Path, height: int, width: int) -> None:
    shown = images(2, height, width)
    sight = Sight.read(folder / "preprocessor_config.json")
    found = sight.patches(shown)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in shown]
    expected = processor(folder)(images=pictures, return_tensors="pt")
    rows, columns = (sight.merge * count for count in found.shape[1:3])
    assert expected["image_grid_thw"].tolist() == [[1, rows, columns]] * 2
    flat = found.reshape(-1, 3 * sight.frames * sight.patch**2)
    torch.testing.assert_close(flat, expected["pixel_values"], rtol=0, atol=1e-5)


def test_sizes_are_those_of_the_processor() -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    for patch, fewest, most in ((14, 3136, 100_000), (16, 65536, 16777216)):
        sight = Sight(patch, 2, 2, fewest, most, (0.5,) * 3, (0.5,) * 3)
        for height, width in itertools.product((17, 70, 256, 322, 512, 1111), repeat=2):
            expected = module.smart_resize(height, width, 2 * patch, fewest, most)
            assert sight.size(height, width) == tuple(expected)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (4, 1), (1, 1)])
def test_places_are_those_of_the_network(model: QwenVl, rows: int, columns: int) -> None:
    before, after = [5, 6, 7], [8, 9, 10, 11]
    laid = laid_out(before, after, rows, columns)
    image = model.network.config.image_token_id
    ids = laid.ids.masked_fill(laid.ids < 0, image)[None]
    places, _ = model.network.model.get_rope_index(
        input_ids=ids,
        mm_token_type_ids=(ids == image).int(),
        image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]]),
        attention_mask=torch.ones_like(ids),
    )
    assert torch.equal(laid.places, places[:, 0])


@torch.no_grad()
def test_answer_is_the_first_that_is_generated(folder: Path, model: QwenVl) -> None:
    """Against transformers' own way: patches of its processor, its places, its generation."""
    shown = images(3)
    found = model(shown, QUESTIONS)
    assert found.dtype == torch.float32 and bool(((found > 0) & (found < 1)).all())
    image = model.network.config.image_token_id
    for row, picture, question in zip(found, shown, QUESTIONS, strict=True):
        seen = processor(folder)(
            images=[Image.fromarray(picture.permute(1, 2, 0).numpy())], return_tensors="pt"
        )
        tokens = int(seen["image_grid_thw"].prod()) // 4
        chat = (
            f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>{question}"
            "<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = model.tokenizer(chat, return_tensors="pt")["input_ids"]
        said = model.network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == image).int(),
            **seen,
            max_new_tokens=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        yes = model.tokenizer.encode("Yes", add_special_tokens=False)[0]
        expected = said.scores[0].softmax(dim=-1)[0, yes]
        assert row.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_padded_batch_is_as_each_alone(model: QwenVl) -> None:
    shown = images(3)
    together = model(shown, QUESTIONS)
    alone = torch.cat([model(shown[i : i + 1], QUESTIONS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert len({round(value, 5) for value in together.tolist()}) == 3


def test_the_template_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, "qwen3_vl")
    expected = QwenVl(folder, CPU, torch.float32)(images(1), QUESTIONS[:1])
    template = json.loads((folder / "chat_template.json").read_text())
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(template["chat_template"])
    assert torch.equal(QwenVl(folder, CPU, torch.float32)(images(1), QUESTIONS[:1]), expected)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | template))
    assert torch.equal(QwenVl(folder, CPU, torch.float32)(images(1), QUESTIONS[:1]), expected)


def test_broken_folders(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, "qwen3_vl")
    (folder / "chat_template.json").write_text('{"chat_template": "no place"}')
    with pytest.raises(ConfigError, match="no place for an image"):
        QwenVl(folder, CPU, torch.float32)(images(1), QUESTIONS[:1])
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="do not fit its config"):
        QwenVl(folder, CPU, torch.float32)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        QwenVl(folder, CPU, torch.float32)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not say how images are cut"):
        QwenVl(folder, CPU, torch.float32)
