"""Units after an answer: their names, and the words that are no unit because they change the value. Data of both graders."""

from __future__ import annotations

import re

__all__ = ["differ", "is_known_unit", "unit_of"]

_UNITS = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "g": "g gram",
    "mg": "mg milligram",
    "kg": "kg kilogram",
    "lb": "lb pound",
    "oz": "oz ounce",
    "ton": "ton tonne",
    "l": "l liter litre",
    "ml": "ml milliliter millilitre",
    "gal": "gal gallon",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week wk",
    "month": "month",
    "year": "year yr",
    "am": "am",
    "pm": "pm",
    "cent": "cent",
    "dollar": "dollar usd",
    "euro": "euro eur",
    "sterling": "sterling gbp",
    "degree": "degree deg",
    "radian": "radian rad",
    "celsius": "celsius",
    "fahrenheit": "fahrenheit",
}
_NAMES = {alias: unit for unit, aliases in _UNITS.items() for alias in aliases.split()}
_NAMES |= {f"{alias}s": unit for alias, unit in _NAMES.items() if len(alias) > 1 and not alias.endswith("s")}
_QUOTIENTS = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "kmph": "km/h", "fps": "ft/s", "mps": "m/s"}
_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTER = {"squared": 2, "cubed": 3}
_CHANGING = """
    hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens half halves third
    thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths
    twelfth twelfths hundredth hundredths thousandth thousandths millionth millionths squared cubed factorial negative minus
    below choose base mod modulo root inverse reciprocal opposite times plus over twice double triple pi infinity not
"""
_CHANGES = frozenset(_CHANGING.split())
_PLAIN = re.compile(r"[^\W\d_]*(?:[\s./'°()-]+[^\W\d_]*)*")


def unit_of(words: str, power: str = "") -> str | None:
    """The name of a unit, such as `cm^2` or `mi/h`: the same for all the ways to write it that are known, "" for an unknown one.

    `words` is what follows a number, `power` the exponent behind it. None where the words are no unit: they hold a word that
    changes the value (5 million, 3 fourths, 4 squared), a digit or a sign of arithmetic.
    """
    words = words.replace("²", "^2").replace("³", "^3").replace("$", "").strip()
    if ending := re.fullmatch(r"(.*?)\s*\^\s*\{?(-?\d)\}?", words):
        words, power = ending[1], ending[2]
    if not _PLAIN.fullmatch(words):
        return None
    plain = re.sub(r"\b([ap])\s*\.\s*m\b\.?", r"\1m", words.casefold()).replace(".", "")
    parts = [_one(part.split()) for part in re.split(r"/|\bper\b", plain)]
    if None in parts:
        return None
    if "" in parts:
        return ""
    name = "/".join(part for part in parts if part)
    return f"{name}^{power}" if power not in ("", "1") else name


def _one(tokens: list[str]) -> str | None:
    """The unit that some words name; "" for an unknown one, None for no unit."""
    power = 0
    if tokens and tokens[0] in _BEFORE:
        power, tokens = _BEFORE[tokens[0]], tokens[1:]
    elif len(tokens) > 1 and tokens[-1] in _AFTER and tokens[-2] in _NAMES:
        power, tokens = _AFTER[tokens[-1]], tokens[:-1]
    if _CHANGES.intersection(re.split(r"\W+", " ".join(tokens))):
        return None
    # Behind another word, "in" and "m" are seldom inches and metres: 5 books in total.
    named = [token for place, token in enumerate(tokens) if place == 0 or len(token) > 2]
    found = [name for token in named if (name := _NAMES.get(token) or _QUOTIENTS.get(token))]
    if not found:
        return ""
    return f"{found[-1] if found[0] == 'degree' else found[0]}{f'^{power}' if power else ''}"


def is_known_unit(word: str) -> bool:
    """Whether a single word is a unit of the table."""
    return word.casefold() in _NAMES or word.casefold() in _QUOTIENTS


def differ(one: str, other: str) -> bool:
    """Whether both name a unit, and not the same."""
    return bool(one and other and one != other)
