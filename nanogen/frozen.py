"""Networks that are read and never trained: text encoders, teachers, tokenizers, judges."""

from __future__ import annotations

from torch import nn


def frozen(module: nn.Module) -> nn.Module:
    """Eval mode for ever, no gradients: whatever `.train()` is called on."""
    module.eval().requires_grad_(False)
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module
