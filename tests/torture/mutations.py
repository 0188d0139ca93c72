"""Damage as files meet it: flipped bits, cuts, repeats, lost and foreign bytes."""

import random


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content after one to three random changes."""
    for _ in range(draw.randint(1, 3)):
        content = draw.choice(_CHANGES)(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    place, bit = draw.randrange(max(1, len(content))), 1 << draw.randrange(8)
    return content[:place] + bytes(byte ^ bit for byte in content[place : place + 1]) + content[place + 1 :]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, len(content) + 1)] if content else content


def _lose(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(max(1, len(content)))
    return content[:start] + content[start + draw.randint(1, 80) :]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(max(1, len(content)))
    piece = content[start : start + draw.randint(1, 200)]
    return content[: start + len(piece)] + piece + content[start + len(piece) :]


def _insert(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    piece = draw.choice(
        [b"\0", b'"', b"\n", b"\r", b"\xff\xfe", b",", b";", b"\t", b"{", b"-", b"nan", b"9" * 30]
    )
    return content[:place] + piece + content[place:]


_CHANGES = (_flip, _cut, _lose, _repeat, _insert)
