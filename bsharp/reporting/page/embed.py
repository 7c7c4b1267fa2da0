"""Text and data into a page so that they stay text and data, whatever they hold.

Text: control characters become their visible pictures (U+2400 …), characters that reorder or hide text their code point
in brackets, lone surrogates U+FFFD; then HTML is escaped. Data: JSON in a script element, in which `<`, `>`, `&`,
U+2028 and U+2029 are `\\u` escapes, so nothing in it can close the element; large data is gzip-compressed, base64.
"""

from __future__ import annotations

import base64
import csv
import gzip
import html
import io
import json
import math
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["base64_gzip", "csv_text", "data_script", "escape", "href", "json_text", "plain_data", "prose", "visible"]

COMPRESS_ABOVE = 16_384
"""Characters of JSON above which a data script is compressed."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff]"
)
_CODE = re.compile(r"`([^`\n]+)`")
_FLAG = re.compile(r"(?<!\S)--[a-z][\w-]*(?: [^\s-]\S{0,29}(?!\S))?")  # with a short value
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SCRIPT_UNSAFE = re.compile("[<>&\u2028\u2029]")


def visible(text: object) -> str:
    """`text` with nothing invisible in it but newlines, tabs and joiners.

    >>> visible("a\\x00b\\u202ec")
    'a␀b⟨U+202E⟩c'
    """
    return _CONTROL.sub(_picture, _SURROGATE.sub("\ufffd", str(text)))


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def escape(text: object) -> str:
    """`visible(text)` as HTML text or a quoted attribute's value."""
    return html.escape(visible(text), quote=True)


def prose(text: object) -> str:
    """`escape(text)` with each pair of backticks on one line as a code element.

    >>> prose("see `a < b`")
    'see <code>a &lt; b</code>'
    """
    return _CODE.sub(_code, escape(text))


def _code(match: re.Match[str]) -> str:
    return f"<code>{_FLAG.sub(_unbroken, match[1])}</code>"


def _unbroken(match: re.Match[str]) -> str:
    return f'<span class="word">{match[0]}</span>'


def href(path: str) -> str:
    """A relative link to the file `path`, percent-encoded; never another scheme or host, whatever the name."""
    try:
        quoted = urllib.parse.quote(path, safe="/", errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that is no escaped byte
        quoted = urllib.parse.quote(_SURROGATE.sub("\ufffd", path), safe="/")
    return f"./{quoted}"


def plain_data(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinities are null, arrays lists, unknown objects their text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain_data(item) for item in value]
    return plain_data(value.tolist()) if hasattr(value, "tolist") else str(value)


def json_text(value: Any) -> str:
    """`value` as JSON; lone surrogates are U+FFFD."""
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError):  # arrays, NaN: seldom, and plain_data takes longer than all the rest
        text = _ENCODER.encode(plain_data(value))
    return _SURROGATE.sub("\ufffd", text)


def base64_gzip(data: bytes) -> str:
    """`data` compressed; the same data gives the same text."""
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


def data_script(element_id: str, value: Any, compress: bool = True) -> str:
    """A script element that holds `value` and runs nothing; `readData(element_id)` reads it in the page.

    Compressed where `compress` and it is long.
    """
    text = json_text(value)
    if compress and len(text) > COMPRESS_ABOVE:
        encoded = base64_gzip(text.encode("utf-8"))
        return f'<script type="text/plain" data-gzip id="{escape(element_id)}">{encoded}</script>'
    safe = _SCRIPT_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return f'<script type="application/json" id="{escape(element_id)}">{safe}</script>'


def csv_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """The columns as CSV (RFC 4180, `\\n` lines); null is empty. Raises ValueError where lengths differ."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of a CSV differ in length: {lengths}; give each one value per row")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    rows = zip(*(plain_data(list(values)) for values in columns.values()), strict=True)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return _SURROGATE.sub("\ufffd", buffer.getvalue())
