"""Whatever is done to an export is seen, and the entry named."""

import copy
import json
import math
from itertools import combinations

import pytest
from support.ledgers import (
    exported,
    filled,
    make_plan,
)

from sordino.core import canonical
from sordino.core.errors import LedgerError
from sordino.privacy import accounting
from sordino.privacy.ledger import (
    Verdict,
    export_ledgers,
)
from sordino.privacy.ledger.verify import replay_lines
from sordino.privacy.plan import verify_ledger


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory):
    """200 entries: 64 rounds released, two abandoned, a rotation, a retirement, a reservation."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = filled(folder / "ledger.db", 64)
    for number in (65, 66):
        ledger.abandon(ledger.charge(make_plan(), number, "data").number, "interrupted")
    ledger.rotate_key()
    ledger.retire("data")
    path = exported(folder, ledger)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 201
    return lines[:-1]  # 200, and a tail to cut


def defects_of(lines):
    verdict = Verdict()
    replay_lines(lines, verdict)
    return verdict.defects


def write(folder, lines):
    path = folder / "changed.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


# --- tampering ----------------------------------------------------------------------------------


def test_the_canonical_export_is_sound(two_hundred, tmp_path):
    assert len(two_hundred) == 200
    verdict = verify_ledger(write(tmp_path, two_hundred))
    assert verdict.ok, verdict.defects
    budget, user = verdict.budgets
    events = [make_plan().round_event()] * 66
    assert (budget.charges, budget.epsilon) == (66, accounting.epsilon_pld(events, 1e-5))
    assert (user.unit, user.charges, user.epsilon) == ("user", 66, math.inf)  # not bounded


def replayed(lines):
    """For each line: its index, and a function that replays other lines after those before it."""
    before = Verdict()
    for i, line in enumerate(lines):

        def go_on(others, at=i):
            books = {client: copy.copy(book) for client, book in before.books.items()}
            verdict = Verdict(books=books)  # shallow: what is refused is never added to a book
            replay_lines(others, verdict, first=at + 1)
            return verdict.defects

        yield i, go_on
        replay_lines([line], before, first=i + 1)
        assert before.ok


def test_every_flipped_byte_is_detected(two_hundred):
    """Every byte of the file, newlines too."""
    flips = 0
    for i, go_on in replayed(two_hundred):
        line = two_hundred[i]
        data = line + b"\n" + b"".join(two_hundred[i + 1 : i + 2])
        for position in range(len(line) + 1):
            changed = bytearray(data)
            changed[position] ^= 1 << position % 8
            defects = go_on(bytes(changed).split(b"\n"))
            assert defects, (i, position)
            assert defects[0].line == i + 1
            flips += 1
    assert flips == sum(len(line) + 1 for line in two_hundred)


def test_every_removed_entry_is_detected(two_hundred):
    for i, go_on in replayed(two_hundred[:-1]):
        (defect,) = go_on(two_hundred[i + 1 :])
        assert (defect.line, defect.entry) == (i + 1, i + 1)
    assert not defects_of(two_hundred[:-1])  # the last one's shows against a kept head alone


def test_any_two_entries_swapped_are_detected(two_hundred):
    for i, go_on in replayed(two_hundred):
        for j in range(i + 1, 200):  # what follows the first of the two hangs from it
            (defect,) = go_on([two_hundred[j]])
            assert (defect.line, defect.entry) == (i + 1, j)


def test_a_swap_detected_in_a_whole_file_is_named(two_hundred, tmp_path):
    lines = list(two_hundred)
    lines[40], lines[90] = lines[90], lines[40]
    (defect,) = verify_ledger(write(tmp_path, lines)).defects
    assert (defect.client, defect.entry, defect.line) == ("client-1", 90, 41)


def test_a_repeated_or_foreign_line(two_hundred):
    assert defects_of([*two_hundred, two_hundred[199]])
    assert defects_of([*two_hundred, two_hundred[0]])
    assert defects_of([*two_hundred[:50], b"{}", *two_hundred[50:]])[0].line == 51
    assert defects_of([*two_hundred, b""])


def test_a_file_without_its_last_newline_or_any_entry(two_hundred, tmp_path):
    path = write(tmp_path, two_hundred)
    path.write_bytes(path.read_bytes()[:-1])
    (defect,) = verify_ledger(path).defects
    assert "line 200" in str(defect)
    assert not verify_ledger(write(tmp_path, [])).ok
    with pytest.raises(LedgerError, match="can't read"):
        verify_ledger(tmp_path / "absent")


def test_clients_may_not_be_mixed(tmp_path):
    for name in ("a", "b", "c"):
        filled(tmp_path / name / "ledger.db", 2, client=name)
    export_ledgers([tmp_path / n / "ledger.db" for n in "abc"], tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_bytes().splitlines()
    assert not defects_of(lines)
    for i, j in combinations(range(len(lines)), 2):  # across clients, too
        changed = list(lines)
        changed[i], changed[j] = changed[j], changed[i]
        assert defects_of(changed), (i, j)
    per = len(lines) // 3
    assert defects_of(lines[per : 2 * per] + lines[:per] + lines[2 * per :])
    broken = list(lines)
    del broken[per + 2]
    (defect,) = defects_of(broken)  # what hangs from the break isn't reported, the next client is
    assert (defect.client, defect.entry) == ("b", 3)


def test_an_entry_that_its_holder_signed_out_of_order(tmp_path):
    """The holder has the key, and still can't release what wasn't committed."""
    ledger = filled(tmp_path / "ledger.db", 1)
    number = ledger.reserve(make_plan(), 2, "data")
    lines = exported(tmp_path, ledger).read_bytes().splitlines()
    key = ledger._pen._key_of(_book(lines))
    body = json.loads(lines[3])
    body |= {"index": 5, "charge": number, "prev": ledger.head.sha256}
    del body["sha256"], body["signature"]
    sha = canonical.sha256_hex(canonical.encode(body))
    forged = canonical.encode({**body, "sha256": sha, "signature": key.sign(sha)})
    (defect,) = defects_of([*lines, forged])
    assert defect.entry == 5
    assert "released can't follow" in defect.what


def _book(lines):
    verdict = Verdict()
    replay_lines(lines, verdict)
    return verdict.books["client-1"]
