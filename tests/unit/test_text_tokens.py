"""Prompts as tokens: transformers' own tokenizers, lengths, and how OpenAI's code cleans text."""

from __future__ import annotations

import pytest
import torch
from tiny_contrastive import bert_tokenizer, clip_tokenizer

from nanogen.encoders.text_tokens import TextTokens, cleaned
from nanogen.errors import ConfigError

TEXTS = ("A red  cow!", "two dogs, 3 cats", "", "Don't  caf\u00e9", "x" * 90, "a" * 75, "b" * 76)


def test_clip_tokens_are_those_of_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    file = clip_tokenizer(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)(
        list(TEXTS), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    found = TextTokens(file, 77)(TEXTS)
    assert torch.equal(found.real, theirs["attention_mask"].bool())
    assert torch.equal(found.ids * found.real, theirs["input_ids"] * theirs["attention_mask"])
    assert found.cut.tolist() == [False, False, False, False, True, False, True]


def test_bert_tokens_are_those_of_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    file = bert_tokenizer(tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="[PAD]")
    theirs = tokenizer(
        list(TEXTS), padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    found = TextTokens(file, 35)(TEXTS)
    assert torch.equal(found.ids, theirs["input_ids"])
    assert torch.equal(found.real, theirs["attention_mask"].bool())


def test_a_cut_text_keeps_its_end_unless_asked(tmp_path) -> None:
    tokens = TextTokens(clip_tokenizer(tmp_path), 10)
    (kept,), (lost,) = tokens(["z" * 50]).ids, tokens(["z" * 50], ended=False).ids
    assert torch.equal(kept[:9], lost[:9]) and kept[9] == 513 and lost[9] == lost[8]
    assert torch.equal(tokens(["z"]).ids, tokens(["z"], ended=False).ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a &amp;amp; b &lt;i&gt;", "a & b <i>"),
        ("it\u2019s \u201cquoted\u201d", 'it\'s "quoted"'),
        ("\ufb01ne \uff26\uff35\uff2c\uff2c\u3000width", "fine FULL width"),
        ("  caf\u00e9 \U0001f600 ", "caf\u00e9 \U0001f600"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    # open_clip 3.3.0 (ftfy 6.3.1) makes the same tokens of both.
    assert cleaned(text) == expected


def test_a_file_of_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a readable tokenizer"):
        TextTokens(tmp_path / "tokenizer.json", 77)
