"""What an audit has finished, so that a stopped one goes on: a file a part, named by its input."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.core import canonical
from sordino.core.durable import write_whole


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
