"""Both keys as GoodWe keeps them: the supplier's whitelist, and the end users' authorization over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

YEAR_S: Final = 365 * 86_400.0


@dataclass(slots=True)
class Key:
    """One device's keys.

    Attributes:
        listed: on the whitelist.
        intervals: when it was authorized, epoch s, half-open, oldest first; the last has no end while it lasts.
        expires_at: epoch s at which the current authorization ends by itself.
    """

    listed: bool = True
    intervals: list[list[float | None]] = field(default_factory=list)
    expires_at: float | None = None


class Consent:
    """Whitelist and authorization of all SNs GoodWe knows."""

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}

    def add(self, sn: str, *, authorized_at: float | None) -> None:
        """Know a device; authorized since `authorized_at` (epoch s), or not at all."""
        key = self._keys[sn] = Key()
        if authorized_at is not None:
            key.intervals.append([authorized_at, None])
            key.expires_at = authorized_at + YEAR_S

    def __contains__(self, sn: str) -> bool:
        return sn in self._keys

    def set_authorized(self, sn: str, authorized: bool, *, now: float, expires_at: float | None = None) -> None:
        """The end user grants or withdraws; granting what is granted only moves the expiry.

        Raises:
            KeyError: GoodWe does not know the SN.
        """
        key = self._keys[sn]
        self._expire(key, now)
        current = bool(key.intervals) and key.intervals[-1][1] is None
        if authorized:
            if not current:
                key.intervals.append([now, None])
            key.expires_at = expires_at if expires_at is not None else now + YEAR_S
        elif current:
            key.intervals[-1][1] = now
            key.expires_at = None

    def set_listed(self, sn: str, listed: bool) -> None:
        """Put an SN on the whitelist or take it off.

        Raises:
            KeyError: GoodWe does not know the SN.
        """
        self._keys[sn].listed = listed

    def _expire(self, key: Key, now: float) -> None:
        if key.expires_at is not None and key.expires_at <= now:
            key.intervals[-1][1] = key.expires_at
            key.expires_at = None

    def standing(self, sn: str, *, now: float) -> str:
        """`authorized`, `withdrawn` (was, and is no longer), or `none` (never was, not listed, or unknown)."""
        key = self._keys.get(sn)
        if key is None or not key.listed or not key.intervals:
            return "none"
        self._expire(key, now)
        return "authorized" if key.intervals[-1][1] is None else "withdrawn"

    def authorized_sns(self, *, now: float) -> list[tuple[str, float, float]]:
        """(SN, authorized at, expires at) of all current ones in a stable order; epoch s."""
        found = []
        for sn, key in self._keys.items():
            if self.standing(sn, now=now) == "authorized":
                found.append((sn, key.intervals[-1][0] or 0.0, key.expires_at or 0.0))
        return found

    def key(self, sn: str, *, now: float) -> Key:
        """The keys of an SN, expired ones closed.

        Raises:
            KeyError: GoodWe does not know the SN.
        """
        self._expire(self._keys[sn], now)
        return self._keys[sn]
