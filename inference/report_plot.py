"""The plot of a video's scores over time as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from inference.people import counted, mean_score

# Size of the drawing and of the plot's area in it, in pixels.
WIDTH, HEIGHT = 720, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 76, 12, 72
# Top of the timeline below the plot, and its height.
TIMELINE, TIMELINE_HEIGHT = HEIGHT - 32, 10
# People who get a line of their own, by score. More would not be told apart.
MAX_LINES = 6
# Above this score, a face looks fake if the models have no verdict bands.
LOOKS_FAKE = 0.5
# Markers of one person after another, in units of pixels around the point.
SHAPES = (
    "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0z",  # circle
    "M-3,-3h6v6h-6z",  # square
    "M0,-4l4,7h-8z",  # triangle
    "M0,-4.5l4.5,4.5l-4.5,4.5l-4.5,-4.5z",  # diamond
    "M0,4l4,-7h-8z",  # triangle upside down
    "M-4,-1.5h2.5v-2.5h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5z",  # cross
)


class Line(NamedTuple):
    """A person in the plot.

    Attributes:
        person: number.
        color: number of the color in the style sheet, from 0.
        shape: path of the marker.
    """

    person: int
    color: int
    shape: str


def marker_definitions() -> Markup:
    """Return the markers of all lines, which every page needs once."""
    markers = "".join(
        f'<marker id="m{index}" viewBox="-7 -7 14 14" markerWidth="14" markerHeight="14" markerUnits="userSpaceOnUse">'
        f'<path class="c{index}" d="{shape}"/></marker>'
        for index, shape in enumerate(SHAPES)
    )
    return Markup(f'<svg width="0" height="0" aria-hidden="true"><defs>{markers}</defs></svg>')


def lines_of(record: Mapping[str, Any]) -> list[Line]:
    """Return the people who have a line in the plot, the most suspicious first."""
    people = sorted(counted(record["people"]), key=lambda person: -person["score"])[:MAX_LINES]
    return [Line(person["person"], index, SHAPES[index]) for index, person in enumerate(people)]


def plot(record: Mapping[str, Any], bands: Mapping[str, float] | None) -> Markup:
    """Return the scores of a video's faces over time: a line per person, thin lines per model, and a timeline.

    Args:
        record: record of a video with faces.
        bands: verdict bands of the header.
    """
    end = max([face["time"] for face in record["faces"]] + [record["duration"] or 0, 0.1])

    def x(time: float) -> float:
        return round(LEFT + time / end * (WIDTH - LEFT - RIGHT), 1)

    parts = [*_axes(end, x), *_bands(bands), *_timeline(record, bands, x)]
    for line in lines_of(record):
        faces = [face for face in record["faces"] if face["person"] == line.person]
        person = next(person for person in record["people"] if person["person"] == line.person)
        models = list(faces[0]["scores"]) if len(faces[0]["scores"]) > 1 else []
        for run in _runs(faces, person["seen"]):
            for model in models:
                parts.append(_polyline([(x(face["time"]), _y(face["scores"][model])) for face in run], line, "model"))
            parts.append(_polyline([(x(face["time"]), _y(mean_score(face))) for face in run], line, "mean"))
    label = f"Scores over {end:.1f} seconds of {len(record['faces'])} faces"
    # Everything in the drawing is a number or a constant.
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>')


def _y(score: float) -> float:
    return round(TOP + (1 - score) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(end: float, x: Any) -> list[str]:
    parts = []
    for score in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{LEFT},{_y(score)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{_y(score) + 4}" class="end">{score:g}</text>')
    step = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600) if end / step <= 10), end / 5)
    for number in range(int(end / step) + 1):
        parts.append(f'<text x="{x(number * step)}" y="{_y(0) + 16}" class="middle">{number * step:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{_y(0) + 31}" class="middle">Time (s)</text>')
    middle = _y(0.5)
    parts.append(f'<text x="14" y="{middle}" class="middle" transform="rotate(-90 14 {middle})">Fake score</text>')
    return parts


def _bands(bands: Mapping[str, float] | None) -> list[str]:
    """Return the shaded areas of the verdicts."""
    if bands is None:
        return []
    areas = (("fake", 1.0, bands["fake"], "likely fake"), ("real", bands["real"], 0.0, "likely real"))
    return [
        f'<rect class="band {name}" x="{LEFT}" y="{_y(high)}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{_y(low) - _y(high):.1f}"/>'
        f'<text x="{WIDTH - RIGHT + 8}" y="{(_y(high) + _y(low)) / 2 + 4:.1f}" class="muted">{label}</text>'
        for name, high, low, label in areas
    ]


def _timeline(record: Mapping[str, Any], bands: Mapping[str, float] | None, x: Any) -> list[str]:
    """Return a mark for every frame with faces, colored if one of them looks fake."""
    limit = bands["fake"] if bands else LOOKS_FAKE
    highest: dict[float, float] = {}
    for face in record["faces"]:
        highest[face["time"]] = max(mean_score(face), highest.get(face["time"], 0.0))
    parts = [
        f'<rect class="track" x="{LEFT}" y="{TIMELINE}" width="{WIDTH - LEFT - RIGHT}" height="{TIMELINE_HEIGHT}"/>'
    ]
    for kind, grow in (("seen", 0), ("fake", 3)):
        times = [time for time, score in highest.items() if (score >= limit) == (kind == "fake")]
        marks = "".join(f"M{x(time):g},{TIMELINE - grow}v{TIMELINE_HEIGHT + 2 * grow}" for time in times)
        parts.append(f'<path class="mark {kind}" d="{marks}"/>')
    count = sum(score >= limit for score in highest.values())
    text = f"a face looks fake (score from {limit:.3f}) in {count} of {len(highest)} frames with faces"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}" class="muted">{text}</text>')
    return parts


def _runs(faces: Sequence[Mapping[str, Any]], seen: Sequence[Sequence[float]]) -> list[list[Mapping[str, Any]]]:
    """Return a person's faces, divided where the person is not seen."""
    runs = [[face for face in faces if start <= face["time"] <= end] for start, end in seen]
    return [run for run in runs if run]


def _polyline(points: Sequence[tuple[float, float]], line: Line, kind: str) -> str:
    """Return a line. A single point gets a line of no length, on which its marker is drawn."""
    (left, top), *others = points
    steps = "".join(f"L{x:g},{y:g}" for x, y in others) or "h0"
    return f'<path class="{kind} s{line.color}" d="M{left:g},{top:g}{steps}"/>'
