"""Networks that are read and never trained: text encoders, teachers, tokenizers, judges."""

from __future__ import annotations

import weakref
from typing import cast

from torch import nn


def frozen(module: nn.Module) -> nn.Module:
    """Eval mode for ever, no gradients: whatever `.train()` is called on."""
    module.eval().requires_grad_(False)
    # By a weak name: a network that held itself would keep its memory after its last use.
    own = weakref.ref(module)
    module.train = lambda mode=True: cast(nn.Module, own())  # type: ignore[method-assign]
    return module
