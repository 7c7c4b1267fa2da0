r"""Where the answer stands in a completion: the one place that says so.

| rule | the answer is | used by |
|---|---|---|
| first_box | the content of the first complete `\boxed{…}`; whatever follows is ignored | the embedded tasks |
| last_box | the content of the last complete `\boxed{…}` | mathematics: a later box corrects an earlier one |
| final_number | the last complete `\boxed{…}`, else what stands after the last `####` on its line | GSM8K and its like |
| tagged | the last complete `\boxed{…}`, else the last `<answer>…</answer>`, else the whole text | reasoning-gym |

Nothing found is None: unparseable. A box whose braces do not balance is no box. Where the line of the hashes is empty,
`final_number` reads the next one that is not. It takes GSM8K's calculator marks `<<48/2=24>>`, emphasis (`**18**`), code marks,
`\(…\)` and a label (`Answer: 18`, `The answer is 18`) off; currency, units and thousands separators are the grader's business.
Every rule but first_box also finds `\boxed 5` and `\fbox{5}`.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from bsharp.rewards.base import boxed_answers
from bsharp.rewards.units import unit_of

__all__ = ["ExtractionRule", "extract_answer", "extract_gold"]

ExtractionRule = Literal["first_box", "last_box", "final_number", "tagged"]

_RULES = get_args(ExtractionRule)
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = "####"
_LABEL = re.compile(r"([A-Za-z][A-Za-z ]*?)(?:\s*:|\s+is\b:?)\s*(?=\S)")


def extract_answer(text: str, rule: ExtractionRule) -> str | None:
    """The answer that `text` gives under `rule` (see the table above), or None. The content of a box is given as it stands.

    An empty box is the empty string: an answer was given, and it is empty. Raises ValueError for an unknown rule.
    """
    if rule not in _RULES:
        raise ValueError(f"unknown extraction rule {rule!r}; use one of {', '.join(_RULES)}")
    if rule == "first_box":
        return next(boxed_answers(text), None)
    *_, boxed = (None, *boxed_answers(text, loose=True))
    if boxed is not None:
        return boxed
    if rule == "final_number":
        return _after_hashes(text)
    if rule == "tagged":
        tagged = _TAGGED.findall(text)
        return (tagged[-1] if tagged else text).strip()
    return None


def extract_gold(text: str, rule: ExtractionRule) -> str:
    """The right answer from a field that may hold a whole reference solution: what the rule finds, else the text as it is."""
    return ((None if rule == "tagged" else extract_answer(text, rule)) or text).strip()


def _after_hashes(text: str) -> str | None:
    _, found, after = text.rpartition(_HASHES)
    if not found:
        return None
    line = _CALCULATOR_MARK.sub("", after.strip().partition("\n")[0])
    line = re.sub(r"\\[()]", "", line).strip(" \t\r*`")
    label = _LABEL.match(line)
    # Words such as "half" or "not" in a label would change what follows: then it is no label.
    if label and unit_of(label[1]) is not None:
        line = line[label.end() :].strip(" *`")
    return line or None
