"""What a run carries so that its leakage can be measured: the section `[audit]`."""

from __future__ import annotations

from dataclasses import dataclass

from sordino.core.errors import ConfigError, expected

KINDS = ("random", "bigrams", "secret")  # of record canaries
MOST_CANARIES = 1 << 14


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Canaries: records that take part if an independent fair coin says so.

    Nothing by default. They are committed to before training, and inserted only where the owner
    agreed; an inserted one is an ordinary record, charged like any other. How many guesses an
    auditor will make is fixed here too, before there is anything to look at.

    Attributes:
        canaries: Of each client that agreed; about half of them are inserted.
        kinds: Of what text, in turn; see `sordino.sim.audit.wording`.
        words: How many words or tokens one has.
        secrets: Of each client that agreed: sentences with a code, for exposure. They have coins
            too, so that about half were never seen and show what chance gives.
        repetitions: How often an inserted secret stands in the data, in turn. What is there more
            than once isn't one record, and says nothing about a claim for one record.
        agreed: The users whose owners agreed; empty: all.
        guesses: The part of all canaries that is guessed on, in three sizes of attempt at most.
    """

    canaries: int = 0
    kinds: tuple[str, ...] = KINDS
    words: int = 12
    secrets: int = 0
    repetitions: tuple[int, ...] = (1, 4)
    agreed: tuple[str, ...] = ()
    guesses: tuple[float, ...] = (0.1, 0.5)

    def __post_init__(self) -> None:
        for name in ("canaries", "secrets"):
            value = getattr(self, name)
            _require(0 <= value <= MOST_CANARIES, name, value, f"in 0..{MOST_CANARIES}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        required = f"one or more of {', '.join(KINDS)}"
        _require(bool(self.kinds) and not unknown, "kinds", self.kinds, required)
        _require(4 <= self.words <= 64, "words", self.words, "in 4..64")
        counts = self.repetitions
        ok = bool(counts) and all(1 <= count <= 1000 for count in counts)
        _require(ok, "repetitions", counts, "one or more numbers in 1..1000")
        parts = self.guesses
        ok = 1 <= len(parts) <= 3 and all(0 < part <= 1 for part in parts)
        _require(ok, "guesses", parts, "one to three numbers in (0, 1]")

    @property
    def plants(self) -> bool:
        """Whether a run carries anything."""
        return bool(self.canaries or self.secrets)


def _require(ok: bool, name: str, value: object, required: str) -> None:
    if not ok:
        raise ConfigError(expected(f"audit.{name}", value, required))
