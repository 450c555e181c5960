"""Draws which rooms of the package import which, as an SVG picture.

    python tools/imports.py > docs/pictures/imports.svg

The rows of the picture are the layers of the import contract in `pyproject.toml`. An arrow is at
least one import of a file by a file. Imports of the lowest layer are not drawn, since every room
has some, nor are those of the command line, which imports a verb's room when the verb is called.
"""

import tomllib
from pathlib import Path

import grimp

PACKAGE = "crome"
WIDTH, ROW, BOX, HEIGHT = 900, 96, 118, 38
STYLE = 'font-family="Helvetica, Arial, sans-serif" font-size="14"'
COLOURS = ("#2563eb", "#c2410c", "#15803d", "#7e22ce", "#be123c", "#0f766e", "#a16207", "#475569")
Place = tuple[float, float]


def layers() -> list[list[str]]:
    """The rooms of each layer, from the highest to the lowest."""
    settings = tomllib.loads(Path("pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    listed = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [
        [
            room.strip(" ()").removeprefix(f"{PACKAGE}.")
            for room in layer.replace(":", "|").split("|")
        ]
        for layer in listed
    ]


def imports() -> list[tuple[str, str]]:
    """The pairs of rooms of which the first imports the second."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    found = {
        (room_of(module), room_of(other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    return sorted((a, b) for a, b in found if a != b)


def room_of(module: str) -> str:
    """The room of a module: the second part of its name."""
    return module.split(".")[1] if "." in module else module


def places(rows: list[list[str]]) -> dict[str, Place]:
    """The middle of each room's box; layers are shifted in turn, so that arrows pass boxes."""
    return {
        room: ((column + 1) * WIDTH / (len(row) + 1) + (-1) ** number * 56, 40 + number * ROW)
        for number, row in enumerate(rows)
        for column, room in enumerate(row)
    }


def arrow(start: Place, end: Place, colour: str) -> str:
    """A curve from the lower edge of a box to the upper edge of another."""
    (x0, y0), (x1, y1) = start, end
    x1 += max(-BOX / 3, min(BOX / 3, (x0 - x1) / 6))  # each arrives on the side it comes from
    y0, y1 = y0 + HEIGHT / 2, y1 - HEIGHT / 2
    bend = (y1 - y0) / 2
    curve = (
        f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}"
    )
    return (
        f'<path d="{curve}" fill="none" stroke="{colour}" stroke-width="1.6" opacity="0.8"'
        ' marker-end="url(#tip)"/>'
    )


def box(room: str, place: Place, colour: str) -> str:
    """A room."""
    x, y = place
    return (
        f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" height="{HEIGHT}"'
        f' rx="7" fill="#fff" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>'
    )


def drawing() -> str:
    """The whole picture."""
    *upper, lowest = layers()
    at = places(upper)
    colour = {room: COLOURS[number % len(COLOURS)] for number, room in enumerate(at)}
    arrows = [arrow(at[a], at[b], colour[a]) for a, b in imports() if a in at and b in at]
    boxes = [box(room, place, colour[room]) for room, place in at.items()]
    bottom = 40 + len(upper) * ROW
    floor = (
        f'<rect x="40" y="{bottom - 30}" width="{WIDTH - 80}" height="60" rx="7" fill="#f1f5f9"'
        f' stroke="#94a3b8"/><text x="{WIDTH / 2}" y="{bottom - 5}" text-anchor="middle">'
        f'{" · ".join(lowest)}</text><text x="{WIDTH / 2}" y="{bottom + 17}" font-size="12"'
        f' fill="#475569" text-anchor="middle">every room imports some of these</text>'
    )
    height = bottom + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {STYLE}>'
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6"'
        ' markerHeight="6" orient="auto"><path d="M0 0 10 5 0 10z" fill="context-stroke"/>'
        f'</marker></defs><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f"{''.join([*arrows, *boxes, floor])}</svg>"
    )


if __name__ == "__main__":
    print(drawing())
