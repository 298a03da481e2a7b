"""Sizes, durations and signals as people write them: ``64m``, ``1m30s``, ``SIGTERM``. Pure.

Source: compose-spec 11-extension.md "Specifying durations" and "Specifying byte values".
"""

from __future__ import annotations

import re
import signal as signals

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|k|kb|kib|m|mb|mib|g|gb|gib|t|tb|tib)?", re.IGNORECASE | re.ASCII)
_SHIFT = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ORDER = ("d", "h", "m", "s", "ms", "us")
MAX_SIZE = 1 << 62
MAX_DURATION = 10 * 366 * 86400.0


def parse_size(value: int | str) -> int:
    """Bytes from ``67108864``, ``"64m"``, ``"64MiB"``, ``"1.5g"``; k, m, g, t are powers of 1024.

    Raises:
        ValueError: not such a value, negative, or above 2**62.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError('expected a size such as 67108864 or "64m"')
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f'"{value}" is not a size; expected a number with an optional unit b, k, m, g or t, such as 64m')
        if len(match[1]) > 100:
            raise ValueError("that size is too large")
        from decimal import Decimal  # not at every start of the command

        value = int(Decimal(match[1]) * (1 << _SHIFT[(match[2] or "b")[0].lower()]))
    if not 0 <= value <= MAX_SIZE:
        raise ValueError("a size must be 0 or more" if value < 0 else "that size is too large")
    return value


def parse_duration(value: float | int | str) -> float:
    """Seconds from ``90``, ``1.5``, ``"90s"``, ``"1m30s"``, ``"500ms"``; units d, h, m, s, ms, us, largest first.

    Raises:
        ValueError: not such a value, negative, not finite, or above ten years.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError('expected a duration such as 90, "90s" or "1m30s"')
    seconds = _duration_text(value) if isinstance(value, str) else value
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError("a duration must be 0 or more" if seconds < 0 else "that duration is too long")
    return float(seconds)


def _duration_text(text: str) -> float:
    bad = ValueError(f'"{text}" is not a duration; expected one such as 90s, 1m30s or 500ms')
    text = text.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise bad
    ranks = [_ORDER.index(unit) for _, unit in parts]
    if ranks != sorted(set(ranks)):
        raise bad
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_size(size: int) -> str:
    """``67108864`` → ``"64.0M"``; for people."""
    number = float(size)
    for unit in ("B", "K", "M", "G"):
        if number < 1024:
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}T"


def format_duration(seconds: float) -> str:
    """``0.0132`` → ``"13ms"``, ``3.25`` → ``"3.2s"``, ``130`` → ``"2m10s"``; for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def signal_name(number: int) -> str:
    """``15`` → ``"SIGTERM"``, ``37`` → ``"SIGRTMIN+3"``."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signals.SIGRTMIN}" if number > signals.SIGRTMIN else f"signal {number}"
