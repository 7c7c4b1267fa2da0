"""Shape annotations are checked while the tests run, and torch keeps to one thread so that figures repeat."""

from __future__ import annotations

import torch
from jaxtyping import install_import_hook

install_import_hook(["bsharp.algorithm", "bsharp.theory", "bsharp.masking"], "beartype.beartype")
torch.set_num_threads(1)
