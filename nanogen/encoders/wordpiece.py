"""BERT's lower-case tokenizer, from the `vocab.txt` that models are published with.

pieces = WordPiece(folder / "vocab.txt")
tokens = pieces.encode(["Is there a cat?", "Is it red?"], limit=35)
tokens.ids, tokens.mask        # int64 and bool [2, L]
pieces.decode([101, 2748, 102])        # "yes"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor

from nanogen.errors import ConfigError

PAD, START, END = "[PAD]", "[CLS]", "[SEP]"


@dataclass(frozen=True)
class Tokens:
    """Texts of a batch, padded on the right to the longest."""

    ids: Tensor
    """int64 [B, L]"""
    mask: Tensor
    """bool [B, L], true on tokens"""

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device))


class WordPiece:
    """Splits words as `bert-base-uncased` does: without case and accents."""

    def __init__(self, vocabulary: Path) -> None:
        """ConfigError where the file is missing or lacks `[PAD]`, `[CLS]` or `[SEP]`."""
        try:
            self._tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        except Exception as problem:  # the library raises bare Exceptions
            raise ConfigError(
                f"{vocabulary} is no vocabulary of BERT: {problem}; get the file anew"
            ) from problem
        self.start, self.end, self.pad = map(self._id_of, (START, END, PAD))

    def __len__(self) -> int:
        """Entries of the vocabulary."""
        return self._tokenizer.get_vocab_size()

    def _id_of(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ConfigError(f"the vocabulary lacks {token}; get the file vocab.txt anew")
        return found

    def encode(self, texts: Sequence[str], limit: int) -> Tokens:
        """`[CLS] ... [SEP]` of each text, of which words are cut off beyond `limit` tokens."""
        self._tokenizer.enable_truncation(limit)
        ids = [torch.tensor(e.ids) for e in self._tokenizer.encode_batch(list(texts))]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad)
        lengths = torch.tensor([len(row) for row in ids])
        return Tokens(padded, torch.arange(padded.shape[1]) < lengths[:, None])

    def pieces(self, text: str) -> list[int]:
        """The tokens of a text alone, without `[CLS]` and `[SEP]`."""
        self._tokenizer.no_truncation()
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words of tokens, without `[PAD]`, `[CLS]` and `[SEP]` wherever they stand."""
        kept = [i for i in ids if i not in (self.start, self.end, self.pad)]
        return self._tokenizer.decode(kept, skip_special_tokens=False).strip()
