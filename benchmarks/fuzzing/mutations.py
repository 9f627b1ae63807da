"""Random mutations of bytes, JSON values and tables. A result depends only on the arguments and the generator."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

# Integers at the limits of the fields of file formats.
EXTREMES = tuple(
    sorted(
        {0, 1, 2, 3, *(2**bits + offset for bits in (7, 8, 15, 16, 24, 31, 32, 63, 64) for offset in (-2, -1, 0, 1))}
    )
)
# Numbers of changes of one case; most have few, because a file with many is rejected at once.
CHANGES = (1, 1, 1, 1, 2, 2, 3, 5, 8, 20)
# Largest difference between the sizes of a file and a changed one, in bytes.
MAX_GROWTH = 2**20
# Number of parts of a JSON value beyond which none is repeated many times.
MAX_PARTS = 1000
# JSON that few programs expect, valid or not.
ODD_JSON = (
    "null", "true", "false", "0", "-1", "1", "2", "0.5", "-0.0", "1.0", "1e3", "1e400", "-1e400", "1e-320", "1e38",
    "3.5e38", "1e308", "NaN", "Infinity", "-Infinity", "2147483647", "2147483648", "-2147483649",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 400, "1" * 5000,
    '""', '"a"', '"0"', '"1"', '" 1"', '"1_0"', '"1e3"', '"nan"', '"inf"', '"0x10"', '"\u0661"', '"-1"',
    '"\\ud800"', '"\\udcff"', '"\\u0000"', '"\\u202e"', '"\\u001b[2J"', '"\\n"',
    '"' + "n" * 300 + '"', '"' + "\\n" * 5000 + '"',
    '"."', '".."', '"../x.mp4"', '"/tmp/x.mp4"', '"x.mp4"', '"REAL"', '"FAKE"', '"con.mp4\\u0000"', '"\\ud800.mp4"',
    "[]", "{}", "[[]]", "[null]", "[NaN, 1]", "[1, 2, 3]", "[0, 0, 1e308, -1e308]", '{"a": 1}', '{"": {}}',
    "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 50, "nul", "'a'", "1,", "",
)  # fmt: skip
# Cells that few programs expect in a table.
ODD_CELLS = (
    "", " ", "0", "1", "-1", "+1", "0.5", "1.0", "1e3", "1e400", "-0", "nan", "NaN", "inf", "-inf", "None", "True",
    "NA", "99999999999", "2147483648", "-2147483649", "9223372036854775808", "9" * 30, "1" + "0" * 400, "0x10", "1_0",
    "\u0661", "\u00a0", "..", ".", "/", "../x", "/tmp/x", "a/b", "a\0b", "\x1b[2J", "\u202e", '"', '""', '"a', 'a"b',
    '"a\nb"', '"a\rb"', "a\rb", ",", ",,,", "\udcff", "\ufeff", "n" * 300, "#", "'", "\t", "2020-01-01", "1,000",
)  # fmt: skip

Operation = Callable[[random.Random, bytearray, int], None]


def mutate_bytes(rng: random.Random, data: bytes, places: Sequence[int] = (), donors: Sequence[bytes] = ()) -> bytes:
    """Return a copy of a file with a few random changes, most of them near its start or near interesting places.

    Args:
        rng: generator of all random choices.
        data: content of the file.
        places: positions of headers.
        donors: other files, whose parts are mixed in now and then.
    """
    mutated = bytearray(data)
    for _ in range(rng.choice(CHANGES)):
        if donors and rng.random() < 0.03:
            _splice(rng, mutated, rng.choice(donors))
        else:
            rng.choices(list(OPERATIONS), list(OPERATIONS.values()))[0](rng, mutated, _place(rng, mutated, places))
            del mutated[len(data) + MAX_GROWTH :]  # parts that are repeated again and again
    return bytes(mutated)


def _place(rng: random.Random, data: bytearray, places: Sequence[int]) -> int:
    """Choose a position: near an interesting place, in the first kilobyte or anywhere."""
    choice = rng.random()
    if places and choice < 0.5:
        position = rng.choice(places) + rng.randint(-8, 32)
    else:
        position = rng.randrange(max(1, min(len(data), 1024) if choice < 0.75 else len(data)))
    return min(max(position, 0), len(data))


def _flip_bit(rng: random.Random, data: bytearray, place: int) -> None:
    for position in range(place, min(place + 1, len(data))):
        data[position] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, place: int) -> None:
    data[place : place + 1] = bytes([rng.randrange(256)])


def _set_run(rng: random.Random, data: bytearray, place: int) -> None:
    length = min(_length(rng), len(data) - place)
    data[place : place + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def _set_integer(rng: random.Random, data: bytearray, place: int) -> None:
    """Replace an integer of 16, 32 or 64 bits with an extreme one, or with one close to it."""
    size = rng.choice((2, 4, 4, 4, 8))
    order = rng.choice((">", ">", "<"))
    old = int.from_bytes(data[place : place + size], "big" if order == ">" else "little")
    value = rng.choice((rng.choice(EXTREMES), old + rng.choice((-1, 1, 8)), old * 2, -1)) % 2 ** (8 * size)
    data[place : place + size] = struct.pack(order + {2: "H", 4: "I", 8: "Q"}[size], value)


def _truncate(rng: random.Random, data: bytearray, place: int) -> None:
    del data[max(place, rng.randrange(len(data) + 1)) :]


def _insert(rng: random.Random, data: bytearray, place: int) -> None:
    length = _length(rng)
    data[place:place] = rng.choice((bytes(length), rng.randbytes(length)))


def _remove(rng: random.Random, data: bytearray, place: int) -> None:
    del data[place : place + _length(rng)]


def _repeat(rng: random.Random, data: bytearray, place: int) -> None:
    data[place:place] = data[place : place + _length(rng)] * rng.choice((1, 1, 2, 10))


def _swap(rng: random.Random, data: bytearray, place: int) -> None:
    """Swap two blocks of equal length."""
    length = _length(rng)
    other = rng.randrange(len(data) + 1)
    first, second = sorted((place, other))
    if first + length <= second and second + length <= len(data):
        block = data[first : first + length]
        data[first : first + length] = data[second : second + length]
        data[second : second + length] = block


def _splice(rng: random.Random, data: bytearray, donor: bytes) -> None:
    """Replace a part with the same part of another file."""
    place = rng.randrange(len(data) + 1)
    length = _length(rng) * rng.choice((1, 8))
    data[place : place + length] = donor[place : place + length]


def _length(rng: random.Random) -> int:
    return rng.choice((1, 2, 4, 4, 8, 16, 64, rng.randint(1, 512), rng.randint(1, 4096)))


# Operation -> relative frequency.
OPERATIONS: dict[Operation, int] = {
    _flip_bit: 5,
    _set_byte: 4,
    _set_run: 3,
    _set_integer: 8,
    _truncate: 1,
    _insert: 2,
    _remove: 2,
    _repeat: 2,
    _swap: 2,
}


def mutate_json(rng: random.Random, value: Any) -> str:
    """Return the text of a JSON value in which a few random parts were replaced, removed, renamed or repeated."""
    value, odd = copy.deepcopy([value]), list[str]()
    for _ in range(rng.choice(CHANGES)):
        if not (parts := _parts(value)):
            break
        container, key = rng.choice(parts)
        container[key] = _changed(rng, container[key], odd)
        _rearrange(rng, container, key)
    text = json.dumps(value[0] if value else [])
    return re.sub(r'"\\u0000odd(\d+)"', lambda match: odd[int(match[1])], text)


def odd_json(rng: random.Random) -> Any:
    """Return a valid JSON value that few programs expect."""
    while True:
        try:
            return json.loads(rng.choice(ODD_JSON))
        except (ValueError, RecursionError):
            continue


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Return the container and the key of each part of a JSON value, without the value itself."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [part for key in keys for part in [(value, key), *_parts(value[key])]]


def _changed(rng: random.Random, part: Any, odd: list[str]) -> Any:
    """Return a replacement; text that is inserted unchanged is added to `odd` and represented by its number."""
    if isinstance(part, (int, float)) and not isinstance(part, bool) and rng.random() < 0.3:
        return rng.choice((-part, part + 1, part - 1, part * 10, part / 7, str(part), [part]))
    if isinstance(part, str) and rng.random() < 0.3:
        place = rng.randint(0, len(part))
        return (
            part[:place] + rng.choice(("", "\n", "\0", "/", "../", "\ud800", "\u202e", "x" * 300)) + part[place + 1 :]
        )
    if isinstance(part, (list, dict)) and rng.random() < 0.6:
        return part
    odd.append(rng.choice(ODD_JSON))
    return f"\0odd{len(odd) - 1}"


def _rearrange(rng: random.Random, container: Any, key: Any) -> None:
    """Remove, rename or repeat a part now and then."""
    choice = rng.random()
    if choice < 0.15:
        del container[key]
    elif choice < 0.3 and isinstance(container, dict):
        container[
            rng.choice(("", "a", " ", "0", "-1", "1e3", "\u0661", "../a.mp4", f"{key} ", f"{key}x", "\0", "\ud800"))
        ] = container.pop(key)
    elif choice < 0.4 and isinstance(container, list):
        copies = rng.choice((1, 2, 50)) if len(_parts(container)) < MAX_PARTS else 1
        container[key:key] = [copy.deepcopy(container[key]) for _ in range(copies)]


def mutate_lines(rng: random.Random, text: bytes) -> bytes:
    """Return lines of which a few were removed, repeated, moved, joined or cut."""
    lines = text.split(b"\n")
    for _ in range(rng.choice(CHANGES)):
        place, choice = rng.randrange(len(lines)), rng.randrange(6)
        if choice == 0:
            del lines[place]
        elif choice == 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[place])
        elif choice == 2:
            lines.append(lines.pop(place))
        elif choice == 3:
            lines[place : place + 2] = [b"".join(lines[place : place + 2])]
        elif choice == 4:
            lines[place] = lines[place][: rng.randint(0, len(lines[place]))]
        else:
            lines[place] += rng.choice((b"\r", b" ", b"\0", b"\xff", b"\xc2\x85", b"\x0c", b"{}"))
        lines = lines or [b""]
    return b"\n".join(lines)


def mutate_table(rng: random.Random, rows: Sequence[Sequence[str]]) -> bytes:
    """Return the CSV of a table in which a few cells, rows or columns were changed."""
    table = [list(row) for row in rows]
    for _ in range(rng.choice(CHANGES)):
        row = rng.randrange(len(table)) if rng.random() < 0.8 else 0
        column = rng.randrange(len(table[row]) + 1)
        choice = rng.random()
        if choice < 0.7:
            table[row][column : column + 1] = [rng.choice(ODD_CELLS)]
        elif choice < 0.8:
            del table[row][column : column + 1]
        elif choice < 0.85 and len(table) > 1:
            del table[row]
        elif choice < 0.9:
            table.insert(row, list(table[row]))
        elif choice < 0.95:
            for cells in table:
                del cells[column : column + 1]
        else:
            for cells in table:
                cells.insert(column, rng.choice(ODD_CELLS))
    ending = rng.choice(("\n", "\n", "\n", "\r\n", "\r"))
    return ending.join(",".join(row) for row in [*table, []]).encode(errors="surrogateescape")
