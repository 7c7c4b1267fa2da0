"""Shape annotations are checked while the tests run, torch keeps to one thread so that figures repeat, no hub is asked."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from jaxtyping import install_import_hook

install_import_hook(["bsharp.algorithm", "bsharp.theory", "bsharp.masking"], "beartype.beartype")
torch.set_num_threads(1)
