"""What an audit has finished, so that a stopped one goes on: a file a part, named by its input."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sordino.core import canonical, settings
from sordino.core.durable import write_whole
from sordino.privacy.audit import MEASURES, Measure


@dataclass(frozen=True)
class Kept:
    """A folder of finished parts."""

    folder: Path

    def part(self, name: str, given: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What `make` gave for this input, now or before.

        Args:
            name: The part's.
            given: All that its outcome depends on: hashes, sizes, seeds.
            make: Runs the model; gives plain JSON values.
        """
        digest = canonical.sha256_hex(canonical.encode(given))[:16]
        path = self.folder / f"{name}-{digest}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        value = make()
        write_whole(path, json.dumps(value, allow_nan=False) + "\n")
        return value


def tables(found: Sequence[Measure]) -> list[dict[str, Any]]:
    """Measures as plain values."""
    return [{"kind": one.kind, "scores": asdict(one)} for one in found]  # type: ignore[call-overload]


def rebuilt(table: Mapping[str, Any]) -> Measure:
    """A measure as `tables` wrote it."""
    measure: Measure = settings.build(MEASURES[table["kind"]], table["scores"], table["kind"])
    return measure
