"""Every token survives as text; every slip of the hand is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.core.errors import ContractError
from sordino.core.trust import EnrolmentToken, decode_token, encode_token

TOKENS = st.builds(
    EnrolmentToken,
    authority_sha256=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=18, max_size=18),
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@given(TOKENS)
def test_a_token_survives_as_text(token: EnrolmentToken) -> None:
    text = encode_token(token)
    assert decode_token(text) == token
    assert decode_token(f"  {text.lower().replace('-', ' ')}\n") == token
    assert encode_token(decode_token(text)) == text


@given(TOKENS, st.integers(0, 87), st.sampled_from(LETTERS))
def test_a_changed_letter_is_seen(token: EnrolmentToken, at: int, letter: str) -> None:
    letters = encode_token(token).replace("-", "")
    changed = letters[:at] + letter + letters[at + 1 :]
    if changed == letters:
        assert decode_token(changed) == token
    else:
        refuse(changed)


@given(TOKENS, st.integers(0, 86))
def test_two_letters_swapped_are_seen(token: EnrolmentToken, at: int) -> None:
    letters = encode_token(token).replace("-", "")
    swapped = letters[:at] + letters[at + 1] + letters[at] + letters[at + 2 :]
    if swapped != letters:
        refuse(swapped)


@given(TOKENS, st.integers(0, 87))
def test_a_lost_or_doubled_letter_is_seen(token: EnrolmentToken, at: int) -> None:
    letters = encode_token(token).replace("-", "")
    refuse(letters[:at] + letters[at + 1 :])
    refuse(letters[: at + 1] + letters[at:])


@given(st.text(max_size=120))
def test_anything_else_is_refused_by_one_word(text: str) -> None:
    refuse(text)


@given(TOKENS)
def test_its_names_tell_nothing_of_the_secret(token: EnrolmentToken) -> None:
    letters = encode_token(token)
    for shown in (repr(token), str(token), f"{token!s:>9}", token.token_id):
        assert token.secret.hex() not in shown
        assert letters[-9:] not in shown
    assert token.verifier.hex()[:16] != token.token_id


def refuse(text: str) -> None:
    with pytest.raises(ContractError) as caught:
        decode_token(text)
    assert caught.value.reason == "bad-token"
    assert len(text) < 8 or text not in str(caught.value)
