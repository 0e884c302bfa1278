"""Ways to spoil bytes and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = sorted({sign * 2**power + off for power in range(0, 65) for sign in (1, -1) for off in (-1, 0, 1)})


def spoilt(data: bytes, random: Random, *, head: int = 0) -> bytes:
    """Up to eight changes of bytes, numbers and length; every other one in the first `head` bytes, if given."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        end = head if head and random.random() < 0.5 else len(changed)
        random.choice(_CHANGES)(changed, random.randrange(max(1, min(end, len(changed)))), random)
    return bytes(changed)


def _flip(data: bytearray, at: int, random: Random) -> None:
    if data:
        data[at] ^= 1 << random.randrange(8)


def _set(data: bytearray, at: int, random: Random) -> None:
    if data:
        data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _number(data: bytearray, at: int, random: Random) -> None:
    """An integer of any width and byte order, near a power of two."""
    width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
    number = random.choice(NUMBERS) % 256**width
    data[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]


def _add(data: bytearray, at: int, random: Random) -> None:
    """A little more or less."""
    width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
    number = int.from_bytes(data[at : at + width], order)  # type: ignore[arg-type]
    number = (number + random.randrange(-20, 21)) % 256**width
    data[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]


def _insert(data: bytearray, at: int, random: Random) -> None:
    data[at:at] = random.randbytes(random.randint(1, 8))


def _remove(data: bytearray, at: int, random: Random) -> None:
    del data[at : at + random.choice((1, 1, 2, 4, 8, 64))]


def _repeat(data: bytearray, at: int, random: Random) -> None:
    data[at:at] = data[at : at + random.choice((1, 2, 4, 8, 64))] * random.choice((1, 1, 2, 8))


def _move(data: bytearray, at: int, random: Random) -> None:
    piece = data[at : at + random.choice((1, 2, 4, 8, 64))]
    to = random.randrange(len(data) + 1)
    data[to : to + len(piece)] = piece


def _cut(data: bytearray, at: int, random: Random) -> None:
    del data[at:]


_CHANGES: tuple[Callable[[bytearray, int, Random], None], ...] = (
    *(_flip, _set, _number, _number, _add, _insert, _remove, _repeat, _move, _cut),
)

_WORDS = ("", "vocals", "x" * 200, "x" * 5000, "\0", "\x1b[2J", "\ud800", "\U0001f3a4", "a\nb", "~nobody-here/x", "é")


def odd_value(random: Random) -> Any:
    """What a configuration does not expect; see also `dumped`."""
    return random.choice(
        (
            *(None, True, False, [], {}, 0, -1, 0.0, -0.0, 1e-320, 1e308, float("nan"), float("inf")),
            *(random.choice(NUMBERS), random.uniform(-2, 2), random.choice(_WORDS), [random.choice(NUMBERS)]),
            *({random.choice(_WORDS): 1}, [0] * random.randrange(70)),
            f"@{random.choice(('lists', 'tables'))}:{random.choice((2, 20, 200, 900, 990, 2000))}",
            f"@digits:{random.choice((20, 300, 310, 4000, 4299, 4300, 5000))}",
        )
    )


def spoilt_json(value: Any, random: Random) -> Any:
    """A copy with one thing changed: a value, a key, or whether it is there."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.02:
        return odd_value(random)
    if isinstance(value, list):
        changed = list(value)
        at = random.randrange(len(changed))
        how = random.randrange(4)
        if how == 0:
            del changed[at]
        elif how == 1:
            changed.insert(at, random.choice((changed[at], odd_value(random))))
        else:
            changed[at] = spoilt_json(changed[at], random)
        return changed
    key = random.choice(list(value))
    how = random.randrange(10)
    if how == 0:
        return {other: item for other, item in value.items() if other != key}
    if how == 1:
        return {**value, random.choice(_WORDS): random.choice((value[key], odd_value(random)))}
    if how == 2:
        return {**value, key: value[random.choice(list(value))]}
    return {**value, key: spoilt_json(value[key], random)}


def dumped(value: Any) -> bytes:
    """JSON; a string "@lists:9" becomes nine lists within each other, "@digits:9" an integer of as many digits."""
    return re.sub(r'"@(lists|tables|digits):(\d+)"', _beyond_json, json.dumps(value)).encode()


def _beyond_json(match: re.Match[str]) -> str:
    """What Python's own encoder would not write."""
    count = int(match[2])
    if match[1] == "digits":
        return "1" + "0" * (count - 1)
    opened, closed = ("[", "]") if match[1] == "lists" else ('{"a":', "}")
    return opened * count + "0" + closed * count
