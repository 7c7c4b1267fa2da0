"""Public data sets, one file a family."""

from __future__ import annotations

from collections.abc import Mapping

from bsharp.tasks.public.aime import AIME24, AIME25
from bsharp.tasks.public.amc import AMC23
from bsharp.tasks.public.deepscaler import DEEPSCALER
from bsharp.tasks.public.gsm8k import GSM8K
from bsharp.tasks.public.hmmt import HMMT
from bsharp.tasks.public.math import MATH, MATH500
from bsharp.tasks.public.minerva import MINERVA
from bsharp.tasks.public.source import Source, public_task
from bsharp.tasks.public.svamp import SVAMP

__all__ = ["PUBLIC", "Source", "public_task"]

PUBLIC: Mapping[str, Source] = {
    source.name: source for source in (GSM8K, MATH, MATH500, MINERVA, AIME24, AIME25, AMC23, HMMT, SVAMP, DEEPSCALER)
}
"""Name of the task → where its problems are published."""
