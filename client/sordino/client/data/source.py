"""The source that a configuration names, and the users of it that take part."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from sordino.client.data import files, shakespeare
from sordino.client.data.records import Record, Source, UserData, dataset_id, ordered_counts, split
from sordino.core.config import DataConfig
from sordino.core.errors import DataError

SHAKESPEARE = "shakespeare"


class ShakespeareSource:
    """Speaking roles as users; without names, those of the demo's plays."""

    label = SHAKESPEARE
    notes: tuple[str, ...] = ()

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        named = {play for play, slash, _ in (u.partition("/") for u in config.users) if slash}
        self._roles = shakespeare.roles(sorted({*shakespeare.DEMO, *named}))

    def users(self) -> Mapping[str, int]:
        """How many speeches each role has; the most first, then by name."""
        return {user: len(texts) for user, texts in self._roles.items()}

    def user(self, name: str) -> UserData:
        """One role's speeches, of any play.

        Raises:
            DataError: There is no such play or role.
        """
        play, slash, _ = name.partition("/")
        if not slash:
            raise DataError(_unknown(name, self._roles, "a user is a play and a role"))
        texts = shakespeare.roles([play])
        if name not in texts:
            raise DataError(_unknown(name, texts))
        records = [Record(text=text) for text in texts[name]]
        return _user_data(name, self.label, records, self._config)


class FileSource:
    """The users of a JSONL or Parquet file, or of a Hugging Face dataset's folder.

    The identity under which budgets are kept is the file's name without folder and ending, so that
    neither an edited nor a moved or converted file starts a fresh budget; renaming it does.
    """

    def __init__(self, config: DataConfig) -> None:
        path = Path(config.source)
        self._config = config
        self._loaded = files.load(path, config.user_column)
        self.label = path.resolve().stem if path.is_file() else path.resolve().name
        self.notes = tuple(self._notes())

    def users(self) -> Mapping[str, int]:
        """How many usable records each user has; the most first, then by name."""
        return ordered_counts({user: len(some) for user, some in self._loaded.records.items()})

    def user(self, name: str) -> UserData:
        """One user's records in the order of the file, for any name.

        A user without a row owns no record. To refuse such a user would make a device with one
        record answer, and the same device without it not.
        """
        return _user_data(name, self.label, self._loaded.records.get(name, ()), self._config)

    def _notes(self) -> Iterable[str]:
        for reason, count in self._loaded.skipped.items():
            yield f"{count} rows were skipped: {reason}"
        if len(self._loaded.records) == 1:
            yield "all records belong to one user: nothing is federated with one client"


def open_source(config: DataConfig) -> Source:
    """Open what `config.source` names.

    Raises:
        DataError: It can't be read, or holds nothing usable.
    """
    return ShakespeareSource(config) if config.source == SHAKESPEARE else FileSource(config)


def select_users(source: Source, config: DataConfig) -> tuple[str, ...]:
    """The users that take part: those that are named, or the `clients` with most records.

    Whoever chooses sees how many records each user has, and that is outside any guarantee: a device
    whose records are to be protected is given its user by name.

    Raises:
        DataError: A name is unknown or given twice, or the source has too few users.
    """
    known = source.users()
    if not known:
        raise DataError(
            f"{source.label} has no usable record: {'; '.join(source.notes) or 'it is empty'}"
        )
    if config.users:
        if len(set(config.users)) < len(config.users):
            raise DataError(f"data.users names a user twice: {', '.join(config.users)}")
        for name in config.users:
            source.user(name)
            if name not in known:
                raise DataError(_unknown(name, known))
        return config.users
    users = tuple(known)
    if len(users) < config.clients:
        raise DataError(
            f"expected data.clients <= {len(users)} (the users of {source.label}), "
            f"got {config.clients}"
        )
    return users[: config.clients]


def _user_data(user: str, identity: str, records: Iterable[Record], config: DataConfig) -> UserData:
    train, held_out = split(records, held_out=config.held_out, share=config.share)
    return UserData(
        user=user, dataset_id=dataset_id(identity, user), train=train, held_out=held_out
    )


def _unknown(name: str, known: Iterable[str], hint: str = "") -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    there = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names[:10])}"
    more = ", …" if not near and len(names) > 10 else ""
    return f"no user is called {name!r}: {hint + ', and ' if hint else ''}{there}{more}"
