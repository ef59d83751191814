"""The tables of what can be named."""

from __future__ import annotations

import pytest

from nanogen import registry
from nanogen.bench import catalogue
from nanogen.encoders import vision


def cells(title: str, kind: str) -> dict[object, dict[str, object]]:
    """First cell of each row -> its cells by column."""
    table = catalogue.table(title, kind)
    titles = [column.title for column in table.columns]
    return {
        row[0].value: dict(zip(titles, [cell.value for cell in row], strict=True))
        for row in table.rows
    }


def test_every_encoder_has_a_row() -> None:
    found = cells("encoders", "encoder")
    assert list(found) == [row.name for row in vision.rows()]
    for row in vision.rows():
        shown = found[row.name]
        assert shown["licence"] == row.licence and shown["hub"] == (row.hub or None)
        assert (shown["width"], shown["parameters"]) == (row.width, row.parameters)
        assert (shown["status"] == "not available") == bool(row.unavailable)


@pytest.mark.parametrize(
    ("name", "tokens", "side", "status"),
    [
        ("dinov2-vit-b", "16 x 16", 224, "ungated"),
        ("dinov3-vit-b16", "16 x 16", 256, "gated"),
        ("convnextv2-cnn-base", "7 x 7", 224, "ungated"),
        ("mocov3-vit-b", "16 x 16", 256, "not available"),
    ],
)
def test_an_encoder(name: str, tokens: str, side: int, status: str) -> None:
    shown = cells("encoders", "encoder")[name]
    assert (shown["tokens"], shown["side"], shown["status"]) == (tokens, side, status)


def test_notes_say_what_cannot_be_opened_and_which_options_there_are() -> None:
    notes = catalogue.table("encoders", "encoder").notes
    assert any(note.startswith("mocov3: ") and "timm" in note for note in notes)
    assert any("dinov2: norm, woreg" in note for note in notes)


def test_a_tokenizer_shows_its_facts_where_it_has_some() -> None:
    found = cells("tokenizers", "tokenizer")
    assert list(found) == [entry.name for entry in registry.entries("tokenizer")]
    assert found["flux"] | {"what": ""} == {
        "tokenizer": "flux",
        "what": "",
        "hub": "black-forest-labs/FLUX.1-dev",
        "licence": "FLUX [dev] non-commercial",
        "latent": "16 x 32 x 32",
        "parameters": 83_819_683,
        "status": "gated",
    }
    pixels = found["pixels"]
    assert pixels["hub"] is pixels["parameters"] is None
    assert (pixels["licence"], pixels["status"]) == ("Apache-2.0", "comes with it")
