"""Which column of a table is the source, the target, the sign: by its usual names, or as told."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from thrifty.errors import DataError

USUAL_NAMES = {
    "source": "source src from fromid fromnode fromnodeid sourceid srcid sourcenode u rater voter sender truster "
    "userfrom node1 start i s",
    "target": "target dst dest destination to toid tonode tonodeid targetid dstid targetnode v ratee votee receiver "
    "trustee userto node2 end j t",
    "sign": "sign signs edgesign polarity vote label y",
    "rating": "rating ratings score trust stars value",
    "weight": "weight weights w edgeweight strength",
    "time": "time times timestamp date datetime unixtime createdat ts t",
}
"""What each column is often called, in lower case, letters and digits only; the first name is the best."""

SIGNS_IN_WORDS = ("+", "-", "positive", "negative", "pos", "neg")
DASHES = ("\u2212", "\u2013")
"""What programs for texts put in place of a hyphen before a number: a minus sign or an en dash."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table; None: found by their usual names (`USUAL_NAMES`)."""

    source: str | None = None
    target: str | None = None
    sign: str | None = None
    rating: str | None = None
    weight: str | None = None
    time: str | None = None


@dataclass(frozen=True)
class Found:
    """Positions of the columns in a table, by what they hold, and what should be said about it."""

    places: dict[str, int]
    notes: tuple[str, ...] = ()


def find_columns(names: Sequence[str], asked: Columns, origin: str, needs_sign: bool = True) -> Found:
    """Return where source, target, sign or rating, weight and time are among `names`.

    Raises `DataError` for a column that was asked for or is needed, and is not there.
    """
    places = {}
    for field in fields(Columns):
        wanted = getattr(asked, field.name)
        place = _told(names, wanted, field.name, origin) if wanted is not None else _usual(names, field.name)
        if place is not None and (wanted is not None or place not in places.values()):
            places[field.name] = place
    notes = []
    if "sign" in places and "rating" in places:
        # Who names one of the two means that one; where both were only found, the sign needs no threshold.
        loser = "sign" if asked.rating is not None and asked.sign is None else "rating"
        notes.append(f"both a sign and a rating: the {loser} in column {names[places.pop(loser)]!r} is not used")
    if needs_sign and not {"sign", "rating"} & set(places) and "weight" in places:
        places["rating"] = places["weight"]
        notes.append(f"no column of signs: the weight in column {names[places['weight']]!r} is taken as a rating")
    needed = ["source", "target", *(["sign"] if needs_sign and "rating" not in places else [])]
    missing = [name for name in needed if name not in places]
    if missing:
        raise DataError(_missing(missing, names, origin))
    return Found(places, tuple(notes))


def looks_like_header(fields_of_line: Sequence[str]) -> bool:
    """Whether a line holds the usual name of a source or a target, or neither a number nor a sign."""
    if any(_usual(fields_of_line, name) is not None for name in ("source", "target")):
        return True
    return not any(_is_number(text) or text.lower() in SIGNS_IN_WORDS for text in map(_with_hyphen, fields_of_line))


def _told(names: Sequence[str], wanted: str, what: str, origin: str) -> int:
    if wanted in names:
        return list(names).index(wanted)
    alike = [place for place, name in enumerate(names) if name.strip().lower() == wanted.strip().lower()]
    if len(alike) == 1:
        return alike[0]
    raise DataError(f"{origin} has no column {wanted!r} for the {what}; it has {', '.join(map(repr, names))}")


def _usual(names: Sequence[str], what: str) -> int | None:
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    return next((plain.index(name) for name in USUAL_NAMES[what].split() if name in plain), None)


def _with_hyphen(text: str) -> str:
    """A text whose minus sign or en dash at the start is a hyphen, as numbers have it here."""
    return "-" + text[1:] if text.startswith(DASHES) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _missing(missing: list[str], names: Sequence[str], origin: str) -> str:
    would_do = []
    for name in missing:
        usual = ", ".join(USUAL_NAMES[name].split()[:4])
        also = f" or rating ({', '.join(USUAL_NAMES['rating'].split()[:2])})" if name == "sign" else ""
        would_do.append(f"{name} ({usual}){also}")
    return (
        f"{origin} has no column for the {' and the '.join(missing)}; found {', '.join(map(repr, names)) or 'none'}; "
        f"name a column {' and '.join(would_do)}, or say which one it is"
    )
