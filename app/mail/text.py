"""Words that others have typed, made fit for one line."""

import unicodedata

#: Invisible, and still part of how some scripts and emoji are spelt.
_JOINERS = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}
_GAPS = {"Cc", "Zl", "Zp", "Zs"}
#: Format characters, such as those that turn the direction of a whole line, and halves of characters.
_DROPPED = {"Cf", "Cs"}


def one_line(text: str, limit: int = 200) -> str:
    """Make one visible line of a text: no line breaks, control characters or turned directions.

    Every name passes through here before it stands in a header, a body, a calendar or a terminal: whoever types a
    line break into a name shall not write headers, and nobody shall turn the rest of a line around.
    """
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def visible(text: str) -> str:
    """Leave what can be seen: line breaks and control characters become spaces, what turns directions goes."""
    return "".join(
        " " if kind in _GAPS else character
        for character in text
        if (kind := unicodedata.category(character)) not in _DROPPED or character in _JOINERS
    )
