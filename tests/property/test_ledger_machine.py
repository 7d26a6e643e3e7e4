"""The ledger against a model: whatever is asked, in whatever order, by whichever process."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.ledgers import RefusedError, at_most, digest, make_plan

from sordino.core.errors import LedgerError
from sordino.privacy.ledger import WHOLE, Ledger, read_ledger
from sordino.privacy.ledger.book import Book, replay
from sordino.privacy.ledger.export import read_lines

CAP = 4
NUMBERS = st.integers(0, 40)
BLOCKS = st.sampled_from(["w1", "w2", WHOLE])
CRASHES = st.sampled_from(["", "", "written", "durable"])
DATASETS = st.sampled_from(["a", "b"])


class CrashError(Exception):
    """Power lost: nothing of the process goes on."""


class LedgerMachine(RuleBasedStateMachine):
    """The model: a dict of charges and their states, a set of retired blocks."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "ledger.db"
        self.charges, self.retired, self.known = {}, set(), []
        self.crash_at = ""
        self.ledger = self.open()
        self.other = self.open()  # another process's

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self):
        return Ledger(self.path, "c", at=self.hook)

    def hook(self, step):
        if step == self.crash_at:
            raise CrashError(step)

    def overlapping(self, data, block):
        return [
            key
            for key, (dataset, old, _) in self.charges.items()
            if dataset == data and (old == block or WHOLE in (old, block))
        ]

    def is_retired(self, data, block):
        return any(d == data and (b == block or WHOLE in (b, block)) for d, b in self.retired)

    @rule(
        which=st.booleans(),
        run=st.sampled_from("xy"),
        number=st.integers(1, 5),
        data=DATASETS,
        block=BLOCKS,
        crash=CRASHES,
    )
    def reserve(self, which, run, number, data, block, crash):
        ledger = self.other if which else self.ledger
        plan = make_plan(run_id=run, rounds=5)
        known = [k for k, r in enumerate(self.known) if r[:2] == (run, number)]
        self.crash_at = f"reserve:{crash}" if crash else ""
        try:
            index = ledger.reserve(plan, number, data, block=block, limit=at_most(CAP))
        except CrashError:
            assert not known
            if crash == "durable":
                self._took(run, number, data, block)
        except RefusedError:
            if not known:
                assert len(self.overlapping(data, block)) >= CAP
        except LedgerError:
            assert known or self.is_retired(data, block)
        else:
            if known:
                (at,) = known
                assert self.known[at][2:] == (data, block, index)
                assert self.charges[index][2] == "reserve"
            else:
                assert not self.is_retired(data, block)
                assert len(self.overlapping(data, block)) < CAP
                self._took(run, number, data, block)
        finally:
            self.crash_at = ""

    def _took(self, run, number, data, block):
        index = read_ledger(self.path)["c"].find(run, number).number
        self.known.append((run, number, data, block, index))
        self.charges[index] = (data, block, "reserve")

    @rule(
        which=st.booleans(),
        at=NUMBERS,
        crash=CRASHES,
        step=st.sampled_from(["commit", "released", "abandoned"]),
    )
    def step(self, which, at, crash, step):
        ledger = self.other if which else self.ledger
        numbers = list(self.charges) or [at]
        number = numbers[at % len(numbers)]
        state = self.charges.get(number, (0, 0, "none"))[2]
        allowed = {
            "commit": ["reserve"],
            "released": ["commit"],
            "abandoned": ["reserve", "commit"],
        }
        call = {
            "commit": ledger.commit,
            "released": lambda n: ledger.release(n, digest(n)),
            "abandoned": lambda n: ledger.abandon(n, "failed"),
        }[step]
        self.crash_at = f"{step}:{crash}" if crash else ""
        try:
            if state not in allowed[step]:
                with pytest.raises(LedgerError):
                    call(number)
                return
            try:
                call(number)
            except CrashError:
                if crash == "written":
                    return
            data, block, _ = self.charges[number]
            self.charges[number] = (data, block, step)
        finally:
            self.crash_at = ""

    @rule(data=DATASETS, block=BLOCKS)
    def retire(self, data, block):
        if (data, block) in self.retired:
            with pytest.raises(LedgerError):
                self.ledger.retire(data, block)
        else:
            self.ledger.retire(data, block)
            self.retired.add((data, block))

    @rule()
    def rotate(self):
        self.ledger.rotate_key()

    @rule()
    def restart(self):
        self.ledger = self.open()

    @invariant()
    def the_file_says_what_the_model_says(self):
        book = Book()
        replay(read_lines(self.path), book, "file")
        states = {
            number: (s.reserve.dataset, s.reserve.block, s.state)
            for number, s in book.charges.items()
        }
        assert states == self.charges
        assert book.retired == self.retired

    @invariant()
    def no_cap_is_passed(self):
        for data in ("a", "b"):
            for block in ("w1", "w2"):
                assert len(self.overlapping(data, block)) <= CAP


LedgerMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestLedger = LedgerMachine.TestCase
