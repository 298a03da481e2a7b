"""A compact map from digests to a small number, for millions of them. Pure."""

from __future__ import annotations

WIDTH = 15
"""Bytes of a digest: enough that no two of a billion jobs share one."""

_SLOT = WIDTH + 1
_FIRST = 1 << 10


class Digests:
    """Digest → 1..255, 24 to 48 bytes each: one table with open addressing instead of an object per entry."""

    def __init__(self) -> None:
        self._table = bytearray(_FIRST * _SLOT)
        self._slots = _FIRST
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, digest: bytes) -> int:
        """The number that `digest` has; 0 where it is not there."""
        return self._table[self._find(digest) + WIDTH]

    def put(self, digest: bytes, number: int = 1) -> bool:
        """Gives `digest` a number; whether it is new."""
        at = self._find(digest)
        new = not self._table[at + WIDTH]
        self._table[at : at + _SLOT] = digest + bytes((number,))
        if new:
            self._count += 1
            if 3 * self._count > 2 * self._slots:
                self._grow()
        return new

    def _find(self, digest: bytes) -> int:
        """Where `digest` is, or the free slot where it belongs."""
        if len(digest) != WIDTH:
            raise ValueError(f"expected {WIDTH} bytes, got {len(digest)}")
        table = self._table
        at = int.from_bytes(digest[:8], "little") % self._slots * _SLOT
        while table[at + WIDTH] and table[at : at + WIDTH] != digest:
            at = (at + _SLOT) % len(table)
        return at

    def _grow(self) -> None:
        before = self._table
        self._slots *= 2
        self._table = bytearray(self._slots * _SLOT)
        for start in range(0, len(before), _SLOT):
            if before[start + WIDTH]:
                at = self._find(bytes(before[start : start + WIDTH]))
                self._table[at : at + _SLOT] = before[start : start + _SLOT]
