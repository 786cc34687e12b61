"""What is wrong with a profile, as sentences: where, what, and what would do. All of it at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, get_args

PATTERNS: Final[Mapping[str, str]] = {
    r'^[^\x00-\x1f"\\=]+$': 'a name without quotes, backslashes, control characters and "="',
    r"^[A-Za-z0-9._-]{1,249}$": "a topic's name: letters, digits, dots, underscores and hyphens",
    r"^[0-9A-Z]{3}$": "three characters of 0-9 and A-Z, as in the serial number",
    r"^[0-9A-Z]{4}$": "four characters of 0-9 and A-Z, as in the serial number",
    r"^/": "a path that begins with /",
    r"^/.*\{name\}": "a path that begins with / and has {name} where the interface's name goes",
    r"\{token\}": "a text with {token} where the token goes",
}
"""What the patterns of a profile ask for, for people."""


class Inconsistent(ValueError):
    """Complaints about values that do not fit one another: (place below the part, what is wrong and what to do)."""

    def __init__(self, complaints: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{place}: {text}" if place else text for place, text in complaints))
        self.complaints = tuple(complaints)


def twice(names: Sequence[object]) -> list[object]:
    """What stands more than once, each once, in order."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def like(name: str, known: Iterable[str]) -> str:
    """A hint at what may have been meant."""
    near = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), near, n=1, cutoff=0.7)
    return f"; is {near[found[0]]} meant?" if found else ""


def sentences(errors: Iterable[Mapping[str, Any]], data: Mapping[str, Any], model: type) -> list[str]:
    """What pydantic's `errors` say about `data`, which was to become a `model`: one sentence for each complaint."""
    return [text for each in errors for text in _told(each, data, model)]


def _keys_at(model: type, path: Sequence[int | str]) -> list[str]:
    """The keys that the model has at a place; none where it is no part of the model."""
    part: Any = model
    for step in path:
        if isinstance(step, int):
            continue
        field = getattr(part, "model_fields", {}).get(step)
        if field is None:
            return []
        part = field.annotation
        part = next((each for each in get_args(part) if hasattr(each, "model_fields")), part)
    return list(getattr(part, "model_fields", {}))


def _told(error: Mapping[str, Any], data: Mapping[str, Any], model: type) -> list[str]:
    """Complaints as sentences: where, what, and what would do."""
    place = ".".join(str(part) for part in error["loc"])
    if error["loc"][:1] == ("families",) and len(error["loc"]) > 1:
        family = data["families"][error["loc"][1]]
        place += f" (family {family['name']})" if isinstance(family, dict) and "name" in family else ""
    context = error.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Inconsistent):
        return [
            f"{'.'.join(part for part in (place, below) if part) or 'the profile'}: {text}"
            for below, text in cause.complaints
        ]
    given = repr(error["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    match error["type"]:
        case "extra_forbidden":
            *above, key = error["loc"]
            text = f"this key is not known{like(str(key), _keys_at(model, above))}"
        case "missing":
            text = "this key is missing; the profile guide says what belongs here"
        case "string_pattern_mismatch":
            text = f"{given} is not {PATTERNS.get(context['pattern'], context['pattern'])}"
        case "literal_error" | "enum":
            text = f"{given} is not possible; it has to be {context['expected']}"
        case "list_type" if isinstance(error["input"], dict):
            text = f"this has to be a list of tables: each begins with [[{place}]]"
        case "list_type":
            text = f"{given} is no list: put it into [ ]"
        case "model_type" | "dict_type":
            text = f"{given} is no table: it begins with [{place}], or is written as {{ name = value }}"
        case _:
            text = f"{error['msg']}, and not {given}"
    return [f"{place or 'the profile'}: {text}"]
