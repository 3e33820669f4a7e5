"""Words in pictures: a font that has the letters of a text, and texts cut to the room that they have."""

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

SIZE = 11  # pixels
LINE = 15  # from one line of text to the next


@cache
def font(path: str | None = None) -> FreeTypeFont:
    """A font file; by default DejaVu Sans, which comes with matplotlib and has the letters of most alphabets."""
    import matplotlib

    return ImageFont.truetype(path or Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", SIZE)


@cache
def letters(path: str) -> frozenset[int]:
    """The characters that a font file draws, by their numbers; empty if it cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as content:
            return frozenset(content.getBestCmap() or {})
    except (TTLibError, OSError, KeyError, AssertionError):
        return frozenset()


@cache
def font_with(character: str) -> FreeTypeFont | None:
    """A font that draws this character: the default one, or the first of the system's that does; None if none does."""
    if ord(character) in letters(str(font().path)):
        return font()
    from matplotlib.font_manager import findSystemFonts

    found = next((path for path in sorted(findSystemFonts()) if ord(character) in letters(path)), None)
    return None if found is None else font(found)


def pieces(text: str) -> list[tuple[str, FreeTypeFont]]:
    """A text in pieces of one font each; a character that no font has is written by its number, as [82B1]."""
    result: list[tuple[str, FreeTypeFont]] = []
    for character in " ".join(text.split()):
        used = font_with(character)
        drawn, used = (character, used) if used is not None else (f"[{ord(character):04X}]", font())
        if result and result[-1][1] is used:
            result[-1] = (result[-1][0] + drawn, used)
        else:
            result.append((drawn, used))
    return result


def width_of(text: str) -> float:
    """Pixels that a text takes."""
    return sum(used.getlength(piece) for piece, used in pieces(text))


def cut(text: str, width: float) -> str:
    """The text, or as much of its beginning as fits the width with "…" behind it."""
    if width_of(text) <= width:
        return text
    kept = text
    while kept and width_of(kept + "…") > width:
        kept = kept[:-1]
    return kept + "…"


def write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, width: float, fill: tuple[int, ...]
) -> None:
    """Write one line of text, cut to a width, with its upper left corner at `place`."""
    x, y = place
    for piece, used in pieces(cut(text, width)):
        draw.text((x, y), piece, fill=fill, font=used)
        x += used.getlength(piece)


def legend(entries: list[tuple[str, tuple[int, ...]]], width: int) -> Image.Image:
    """Names with a square of their colour, in as many lines of this width as they need."""
    box, gap = 10, 12
    places: list[tuple[int, int]] = []
    x, y = 2, 2
    for name, _ in entries:
        needed = min(box + 4 + int(width_of(name)), width - 4)
        if x > 2 and x + needed > width:
            x, y = 2, y + LINE
        places.append((x, y))
        x += needed + gap
    picture = Image.new("RGB", (width, y + LINE + 2), "white")
    draw = ImageDraw.Draw(picture)
    for (name, colour), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y + 2, x + box, y + 2 + box), fill=colour, outline=(128, 128, 128))
        write(draw, (x + box + 4, y), name, width - x - box - 4, (0, 0, 0))
    return picture
