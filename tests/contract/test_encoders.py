"""What every family of vision encoders must do, and every row of it must say.

A new file in `nanogen/encoders` is found by itself; `tests/tiny_encoders.py` says how a tiny model
of it is made.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from parts import images
from tiny_encoders import open_tiny, size_of

from nanogen.encoders import vision
from nanogen.encoders.vision import EncoderRow, Family, VisionEncoder, open_encoder
from nanogen.errors import ConfigError

FAMILIES = vision.families()
OPENED = {
    family: next(row.name for row in known.rows if not row.unavailable)
    for family, known in FAMILIES.items()
    if not all(row.unavailable for row in known.rows)
}
"""a family that can be opened -> the row that it is tested with"""

families = pytest.mark.parametrize("family", FAMILIES)
opened = pytest.mark.parametrize("family", OPENED)


@pytest.fixture(scope="module")
def encoders() -> dict[str, VisionEncoder]:
    return {}


@pytest.fixture
def encoder(family: str, encoders: dict[str, VisionEncoder]) -> VisionEncoder:
    if family not in encoders:
        encoders[family] = open_tiny(OPENED[family])
    return encoders[family]


def given(family: str, count: int = 2) -> torch.Tensor:
    return images(count, size_of(family), seed=3)


def test_names_are_unique() -> None:
    names = Counter(row.name for row in vision.rows())
    assert names and max(names.values()) == 1


@pytest.mark.parametrize("row", vision.rows(), ids=lambda row: row.name)
def test_row(row: EncoderRow) -> None:
    plain, options = vision.parse(row.name)
    assert plain == row.name and not options and "-" in row.name
    assert row.licence and row.width > 0 and row.patch > 0 and row.parameters > 0
    assert row.side % row.patch == 0
    assert not row.hub or row.hub.count("/") == 1
    assert "\n" not in row.unavailable
    # Without a hub it comes with the package, is known to be gone, or is nowhere.
    assert row.hub or row.unavailable or OPENED.get("animals") == row.name


@families
def test_family(family: str) -> None:
    known: Family = FAMILIES[family]
    assert known.rows and list(known.options) == sorted(set(known.options))
    assert all(row.name.startswith(f"{family}-") for row in known.rows)


@families
def test_an_unknown_option_is_refused(family: str) -> None:
    known = FAMILIES[family]
    wrong = f"{known.options[0]}x" if known.options else "wrong"
    with pytest.raises(ConfigError, match=f"no option '{wrong}'") as refused:
        open_encoder(f"{known.rows[0].name}[{wrong}]", 256)
    assert all(option in str(refused.value) for option in known.options[:1])


@families
def test_what_is_unavailable_says_why(family: str) -> None:
    for row in FAMILIES[family].rows:
        if row.unavailable:
            with pytest.raises(ConfigError, match="cannot be opened: ") as refused:
                open_encoder(row.name, 256)
            assert row.unavailable in str(refused.value)


@opened
def test_features(family: str, encoder: VisionEncoder) -> None:
    features = encoder(given(family))
    assert features.patches.shape == (2, encoder.grid**2, encoder.width)
    assert features.patches.dtype == torch.float32 and features.patches.isfinite().all()
    assert features.cls is None or features.cls.shape == (2, encoder.width)
    # Different places and different images have different features.
    assert (features.patches[:, 0] - features.patches[:, -1]).abs().max() > 1e-4
    assert (features.patches[0] - features.patches[1]).abs().max() > 1e-4


@opened
def test_frozen(family: str, encoder: VisionEncoder) -> None:
    before = encoder(given(family)).patches
    torch.nn.ModuleList([encoder]).train()
    encoder.train(True)
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(encoder(given(family)).patches, before)


@opened
def test_gradient_reaches_the_images(family: str, encoder: VisionEncoder) -> None:
    pictures = given(family).requires_grad_()
    patches = encoder(pictures).patches
    # Random weights: a norm without affine makes plain sums and squares constant.
    patches.backward(torch.randn(patches.shape, generator=torch.Generator().manual_seed(0)))
    assert pictures.grad is not None and pictures.grad.isfinite().all()
    assert (pictures.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


@opened
def test_each_image_by_itself(family: str, encoder: VisionEncoder) -> None:
    pictures = given(family, 3)
    together = encoder(pictures)
    torch.manual_seed(1)
    assert torch.equal(encoder(pictures).patches, together.patches)
    alone = encoder(pictures[1:2])
    torch.testing.assert_close(alone.patches[0], together.patches[1], atol=1e-4, rtol=1e-4)
    if together.cls is not None:
        torch.testing.assert_close(alone.cls[0], together.cls[1], atol=1e-4, rtol=1e-4)


@opened
def test_fingerprint(family: str, encoder: VisionEncoder) -> None:
    again = open_tiny(OPENED[family])
    assert encoder.fingerprint == again.fingerprint and encoder.fingerprint
    assert "\n" not in encoder.fingerprint and encoder.name in encoder.fingerprint
    assert torch.equal(encoder(given(family)).patches, again(given(family)).patches)


@opened
@pytest.mark.parametrize("size", [71, 384])
def test_a_size_that_does_not_fit_is_refused(family: str, size: int) -> None:
    with pytest.raises(ConfigError, match=str(size)):
        open_tiny(OPENED[family], size)


@opened
def test_a_folder_that_is_not_there(family: str) -> None:
    with pytest.raises(ConfigError, match="/no/such/folder"):
        open_encoder(OPENED[family], size_of(family), "/no/such/folder")
