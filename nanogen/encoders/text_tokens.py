"""Prompts as the whole numbers that a text encoder takes, and whether they were too long for it.

    tokens = TextTokens(folder / "tokenizer.json", limit=77)(["a red cow", "two blue dogs"])
    tokens.ids                # int64 [2, 77]
    tokens.cut                # bool [2]

Prompts that are too long are cut, and that changes what a score says: so it is counted.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nanogen import hub
from nanogen.errors import ConfigError

CURLED = str.maketrans("\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "'''''\"\"\"\"")
WIDE = re.compile("[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06\uff01-\uffee\u3000]")
"""joined letters, and letters as wide as Chinese ones"""


@dataclass(frozen=True)
class Tokens:
    """Prompts of one batch, padded on the right with 0 to one length."""

    ids: Tensor
    """int64 [B, L]"""
    real: Tensor
    """bool [B, L]: what is not padding"""
    cut: Tensor
    """bool [B]: prompts of which the end is missing"""


class TextTokens:
    """A tokenizer as the library `tokenizers` stores it, and the most tokens that are kept."""

    def __init__(self, file: Path, limit: int) -> None:
        """ConfigError where `file` is not a tokenizer.json."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as problem:  # the library raises nothing more specific
            raise ConfigError(
                f"{file} is not a readable tokenizer: {hub.reason(problem)}; {hub.ANEW}"
            ) from problem
        # What a file says of lengths is for other uses.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.limit = limit

    def __call__(self, texts: Sequence[str], *, ended: bool = True) -> Tokens:
        """Tokens [B, limit], with those that the tokenizer puts at the beginning and the end.

        Of a prompt that is too long the first tokens and the one that ends it are kept; without
        `ended` that one is lost.
        """
        ids = torch.zeros(len(texts), self.limit, dtype=torch.long)
        real = torch.zeros(len(texts), self.limit, dtype=torch.bool)
        cut = torch.zeros(len(texts), dtype=torch.bool)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            found = encoding.ids
            cut[row] = len(found) > self.limit
            kept = found[: self.limit]
            if cut[row] and ended:
                kept[-1] = found[-1]
            ids[row, : len(kept)] = torch.tensor(kept)
            real[row, : len(kept)] = True
        return Tokens(ids, real, cut)


def cleaned(text: str) -> str:
    """A prompt as OpenAI's and OpenCLIP's own tokenizers clean it before anything else.

    HTML entities become characters, curled quotes straight ones, joined and wide letters plain
    ones. Text that was decoded wrongly, which their cleaner also repairs, is left alone.
    """
    text = html.unescape(html.unescape(text))
    text = WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return text.translate(CURLED).strip()
