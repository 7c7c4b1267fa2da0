"""Nothing that is put into a page can be read as markup, script or another address."""

from __future__ import annotations

import base64
import csv
import gzip
import html
import io
import json
import re
import unicodedata
import urllib.parse

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsharp.reporting.page.embed import csv_text, data_script, escape, href, json_text, plain_data, prose, visible

# Every character, lone surrogates included, and the ones that matter often.
TEXTS = st.text(
    st.one_of(
        st.sampled_from("<>&\"'/!-$`{}\x00\x1b\u2028\u2029\u202e\ud800\udfff"),
        st.characters(exclude_categories=()),
    )
)


@given(TEXTS)
def test_escaped_text_holds_no_markup_and_unescapes_to_the_visible_text(text: str) -> None:
    escaped = escape(text)
    assert not set("<>\"'") & set(escaped)
    assert html.unescape(escaped) == visible(text)


@given(TEXTS)
def test_visible_text_holds_no_control_no_override_and_no_surrogate(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u200b") & set(shown)
    shown.encode("utf-8")


@pytest.mark.parametrize(("character", "shown"), [("\x00", "␀"), ("\x1b", "␛"), ("\x7f", "␡"), ("\x9b", "⟨U+009B⟩")])
def test_a_control_character_becomes_its_picture(character: str, shown: str) -> None:
    assert visible(f"a{character}b") == f"a{shown}b"


def test_newlines_tabs_and_joiners_stay() -> None:
    assert visible("a\n\tb\u200d\u200cc") == "a\n\tb\u200d\u200cc"


def script_content(script: str) -> str:
    found = re.fullmatch(r'<script type="application/json" id="[^"<>]*">([^<>&\u2028\u2029]*)</script>', script)
    assert found is not None
    return found[1]


@given(st.recursive(st.one_of(TEXTS, st.integers(), st.none(), st.booleans()), lambda x: st.lists(x, max_size=4)))
def test_a_data_script_reads_back_what_was_put_in_and_cannot_be_closed_from_within(value: object) -> None:
    def without_surrogates(item: object) -> object:
        if isinstance(item, list):
            return [without_surrogates(x) for x in item]
        return re.sub("[\ud800-\udfff]", "\ufffd", item) if isinstance(item, str) else item

    assert json.loads(script_content(data_script("x", value, compress=False))) == without_surrogates(value)


def test_a_long_data_script_is_compressed_and_reads_back() -> None:
    value = ["</script>" * 10_000]
    script = data_script("x", value)
    assert len(script) < 1000
    encoded = re.sub("<[^>]*>", "", script)
    assert json.loads(gzip.decompress(base64.b64decode(encoded))) == value


def test_arrays_and_undefined_numbers_become_json() -> None:
    assert (
        json_text({"a": np.array([1.5, np.nan]), "b": (np.int64(3), "\ud800")}) == '{"a":[1.5,null],"b":[3,"\ufffd"]}'
    )


def test_numbers_that_json_lacks_are_null() -> None:
    assert plain_data([float("nan"), float("inf"), -float("inf"), 1.5]) == [None, None, None, 1.5]


@given(TEXTS)
def test_a_link_stays_a_relative_path_whatever_the_name(name: str) -> None:
    link = href(name)
    split = urllib.parse.urlsplit(link)
    assert (split.scheme, split.netloc, split.query, split.fragment) == ("", "", "", "")
    assert link.startswith("./")
    assert re.fullmatch(r"[A-Za-z0-9_.~/%-]*", link)


def test_a_link_names_the_bytes_of_a_file_name_that_is_not_utf8() -> None:
    assert href(b"a\xff".decode("utf-8", "surrogateescape")) == "./a%FF"


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00")), min_size=1))
def test_csv_reads_back(cells: list[str]) -> None:
    rows = list(csv.reader(io.StringIO(csv_text({"name": cells, "n": list(range(len(cells)))}), newline="")))
    assert rows == [["name", "n"], *([cell, str(at)] for at, cell in enumerate(cells))]


def test_csv_leaves_undefined_numbers_empty() -> None:
    assert csv_text({"x": [1.5, float("nan"), None]}) == 'x\n1.5\n""\n""\n'


def test_uneven_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        csv_text({"a": [1], "b": [1, 2]})


def test_backticks_in_prose_are_code_whose_flags_stay_whole_and_the_rest_stays_text() -> None:
    assert prose("`bsharp diagnose a --only surface`.") == (
        '<code>bsharp diagnose a <span class="word">--only surface</span></code>.'
    )
    assert prose("`<b>` and <i>") == "<code>&lt;b&gt;</code> and &lt;i&gt;"
    assert prose("one ` alone") == "one ` alone"
    assert prose("`a\nb`") == "`a\nb`"
