"""Makes the SVG of matplotlib a sixth as long, for a page that holds dozens: it looks the same."""

import io
import re
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

__all__ = ["small_svg", "svg_address", "svg_size"]

# A reader's machine has one of these; the first is the widest, so that words keep their room.
_FONTS = "DejaVu Sans,Verdana,Arial,sans-serif"
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_MOST_COLORS = 256
# Steps in which the parts of a color are rounded until so few are left.
_COARSER = (1, 2, 4, 8, 16, 32, 64, 128)

_FAMILY = re.compile(r"font-family: [^;\"]*;? ?")
_STANDING = re.compile(r"rotate\(-?0(?:\.0)? [^)]*\)")
_USED = re.compile(r"url\(#([^)]+)\)")
_DOUBLED = re.compile(r"#(\w)\1(\w)\2(\w)\3\b")
_NUMBER = re.compile(r"[A-Za-z]|-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")
# How many numbers follow each letter of a path.
_TAKES = {"M": 2, "L": 2, "Q": 4, "C": 6, "Z": 0}
# What an address may hold unescaped, except for the ampersand.
_PLAIN = "!*'();:@=+$,/?-_.~ <>"
_TAG = re.compile(r"<[^>']*>")

Element = ElementTree.Element


def small_svg(svg: str) -> str:
    """Return an image of matplotlib with the same marks in fewer letters.

    Places are right to a tenth of a point, which is less than a printer shows; pictures in it have
    at most 256 colors; words have no font of their own.
    """
    root = ElementTree.fromstring(svg)
    _rename(root)
    _thin(root)
    root.set("font-family", _FONTS)
    ElementTree.register_namespace("", _SVG[1:-1])
    return ElementTree.tostring(root, "unicode")


def _rename(root: Element) -> None:
    """Give what is referred to a name of a letter or two, and take all other names away."""
    names: dict[str, str] = {}
    for one in root.iter():
        link = one.attrib.pop(_LINK, None)
        if link is not None:
            one.set("href", f"#{_short(link[1:], names)}" if link.startswith("#") else link)
        for key, value in one.attrib.items():
            if "url(#" in value:
                one.set(key, _USED.sub(lambda found: f"url(#{_short(found[1], names)})", value))
    for one in root.iter():
        known = names.get(one.attrib.pop("id", ""))
        if known:
            one.set("id", known)


def _short(name: str, names: dict[str, str]) -> str:
    return names.setdefault(name, f"a{len(names)}")


def _thin(parent: Element) -> None:
    """Leave out groups that say nothing, what only machines read, and styles that repeat."""
    kept: list[Element] = []
    for child in parent:
        _thin(child)
        if child.tag == f"{_SVG}g" and not child.attrib:
            kept += list(child)
        elif child.tag != f"{_SVG}metadata":
            kept.append(child)
    parent[:] = kept
    if not (parent.text or "").strip():
        parent.text = None
    parent.tail = None
    _shorten(parent)
    styles = {child.get("style") for child in kept}
    if len(kept) > 1 and len(styles) == 1 and all(x.tag == f"{_SVG}use" for x in kept):
        style = styles.pop()
        if style and parent.tag == f"{_SVG}g" and "style" not in parent.attrib:
            parent.set("style", style)
            for child in kept:
                del child.attrib["style"]


def _shorten(one: Element) -> None:
    """Write the attributes of an element in fewer letters."""
    if "d" in one.attrib:
        one.set("d", _short_path(one.attrib["d"]))
    if _STANDING.fullmatch(one.get("transform", "")):
        del one.attrib["transform"]
    for key in ("x", "y"):
        if key in one.attrib:
            parts = one.attrib[key].split()
            one.set(key, " ".join(_written(round(10 * float(part))) for part in parts))
    if "style" in one.attrib:
        style = _FAMILY.sub("", one.attrib["style"]).replace(": ", ":").replace("; ", ";")
        one.set("style", _DOUBLED.sub(r"#\1\2\3", style).rstrip(" ;"))
    if "base64," in one.get("href", ""):
        one.set("href", _with_few_colors(one.attrib["href"]))


def _short_path(path: str) -> str:
    """A path in tenths of a point, each place counted from the one before."""
    at, start = (0, 0), (0, 0)
    written, last = "", ""
    for letter, places in _commands(path):
        if letter == "Z":
            written, last, at = f"{written}z", "", start
            continue
        moves = [(x - at[0], y - at[1]) for x, y in places]
        at = places[-1]
        if letter == "M":
            start = at
        elif letter == last == "L" and moves == [(0, 0)]:
            continue
        numbers = ""
        for value in (part for move in moves for part in move):
            numbers = _joined(numbers, _written(value))
        # Of two beginnings the second would be a line to it without its letter.
        is_more = letter == last != "M"
        written = _joined(written, numbers) if is_more else f"{written}{letter.lower()}{numbers}"
        last = letter
    return written


def _commands(path: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Letters of a path of absolute places, each with its places in tenths."""
    parts = _NUMBER.findall(path)
    place, letter = 0, ""
    while place < len(parts):
        if parts[place].isalpha():
            letter = parts[place].upper()
            place += 1
        size = _TAKES[letter]
        numbers = [round(10 * float(part)) for part in parts[place : place + size]]
        yield letter, list(zip(numbers[::2], numbers[1::2], strict=True))
        place += size
        # Further places after a first one are lines to them.
        letter = "L" if letter == "M" else letter


def _written(tenths: int) -> str:
    """Tenths as a number without what can be left out: ``-.5`` for -5, ``12`` for 120."""
    whole, rest = divmod(abs(tenths), 10)
    text = f"{whole or ''}.{rest}" if rest else f"{whole}"
    return f"-{text}" if tenths < 0 else text


def _joined(text: str, more: str) -> str:
    """Two numbers one after the other; a sign, or a second point, tells them apart."""
    if not text or text[-1].isalpha() or more[0] == "-":
        return text + more
    ends_with_point = "." in re.split(r"[^\d.]", text[-12:])[-1]
    return text + more if more[0] == "." and ends_with_point else f"{text},{more}"


def _with_few_colors(address: str) -> str:
    """The same PNG with a table of its colors, the more alike ones made one where it needs it."""
    from matplotlib.image import imread

    head, _, data = address.partition("base64,")
    cells = np.round(255 * imread(io.BytesIO(b64decode(data)))).astype(np.uint16)
    if cells.shape[-1] != 4:
        return f"{head}base64,{''.join(data.split())}"
    for size in _COARSER:
        some = np.minimum((cells + size // 2) // size * size, 255).astype(np.uint8)
        # The four parts of a color as one number, which is sorted sooner.
        numbers, places = np.unique(some.view(np.uint32)[..., 0], return_inverse=True)
        if len(numbers) <= _MOST_COLORS:
            break
    made = _png(numbers.view(np.uint8).reshape(-1, 4), places.reshape(cells.shape[:2]))
    return f"{head}base64,{b64encode(made).decode()}"


def _png(colors: NDArray[np.uint8], places: NDArray[np.intp]) -> bytes:
    """A PNG of places in a table of at most 256 colors."""
    rows = places.astype(np.uint8)
    size = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 3, 0, 0, 0)
    parts = {b"IHDR": size, b"PLTE": colors[:, :3].tobytes(), b"tRNS": colors[:, 3].tobytes()}
    parts[b"IDAT"] = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 9)
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in [*parts.items(), (b"IEND", b"")]:
        made += struct.pack(">I", len(data)) + kind + data
        made += struct.pack(">I", zlib.crc32(kind + data))
    return made


def svg_address(svg: str) -> str:
    """Return an image as an address within a page, without a letter that HTML must escape."""
    # Most of it is plain letters, which base64 would make a third longer.
    turned = _TAG.sub(lambda tag: tag[0].replace('"', "'"), svg)
    return f"data:image/svg+xml,{quote(turned, safe=_PLAIN)}"


def svg_size(svg: str) -> tuple[int, int]:
    """Return width and height of an image, for the space that it takes before it is drawn."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    return (round(float(found[1])), round(float(found[2]))) if found else (518, 300)
