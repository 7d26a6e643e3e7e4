"""The durable rounds against a model: any order of calls, restarts and crashes between them."""

import json
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import fleets
from support.fleets import RUN, TIMEOUT_MS, Clock, Powers, refusal, rows_of

from sordino.core.errors import ContractError
from sordino.server import fleet_rounds as fr
from sordino.server.fleet_rounds.machine import MOVES
from sordino.server.store import Accepted, Event, Round, Run, Task

DEVICES = [f"d{number}" for number in range(4)]
STATES = list(MOVES[Round])
ANY_DEVICE = st.sampled_from(DEVICES)
CRASHES = st.sampled_from(["", "", "written", "durable", "kept"])


class CrashError(BaseException):
    """Power lost: nothing of the process goes on."""


class FleetMachine(RuleBasedStateMachine):
    """The model: who was acknowledged in which round, which rounds are over, which adapter is."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.clock, self.work, self.crash_at = Clock(), Powers(), ""
        self.opened = None
        self.acknowledged, self.published, self.seen, self.commands = set(), {}, {}, 0
        self.restart()
        fleets.enrol(self.made, len(DEVICES))
        fleets.start(self.made, self.folder, rounds=50, cohort=2, extra=1, patience=50)

    def teardown(self):
        self.opened.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def at(self, step):
        if self.crash_at and step.endswith(f":{self.crash_at}"):
            self.crash_at = ""
            raise CrashError(step)

    def crashing(self, crash, call, *args):
        """Call, perhaps into a crash; after one everything starts again from the disk."""
        self.crash_at = crash
        try:
            return call(*args)
        except CrashError:
            self.restart()
        except ContractError as error:
            return error.reason
        finally:
            self.crash_at = ""

    @rule()
    def restart(self):
        if self.opened is not None:
            self.opened.__exit__(None, None, None)
        self.opened = fr.open_fleet(self.folder, now_ms=self.clock, at=self.at)
        self.made = self.opened.__enter__()
        fr.recover(self.made, lambda _: self.work)

    @rule(crash=CRASHES)
    def step(self, crash):
        self.crashing(crash, fleets.step, self.made, self.work, RUN)

    @rule(device=ANY_DEVICE, crash=CRASHES)
    def answer(self, device, crash):
        task = fr.task_for(self.made, device)
        if task is None:
            return
        sent = self.crashing(crash, fleets.answer, self.made, self.work, device)
        if getattr(sent, "state", "") == "accepted":
            self.acknowledged.add((device, task.round))

    @rule(device=ANY_DEVICE)
    def answer_badly(self, device):
        task = fleets.take(self.made, device)
        if task is not None:
            data = fleets.update_of(device, task.round, "nan")
            refused = refusal(fleets.send, self.made, self.work, task, data)
            assert refused in ("not-finite", "another-answer")

    @rule(device=ANY_DEVICE, reason=st.sampled_from(["policy-budget", "internal"]))
    def decline(self, device, reason):
        task = fr.task_for(self.made, device)
        if task is not None:
            fr.decline(self.made, device, task.task_id, reason)

    @rule(part=st.sampled_from([0.3, 1.0]))
    def wait(self, part):
        self.clock.now += int(TIMEOUT_MS * part)

    @rule(command=st.sampled_from([fr.pause_run, fr.resume_run]), crash=CRASHES)
    def pause_or_resume(self, command, crash):
        self.crashing(crash, command, self.made, self.command(), RUN)

    @rule(cohort=st.integers(1, 3))
    def change_cohort(self, cohort):
        fr.change_cohort(self.made, self.command(), RUN, cohort, 1, 1)

    @precondition(lambda self: self.published)
    @rule(data=st.data(), crash=CRASHES)
    def roll_back(self, data, crash):
        number = data.draw(st.sampled_from([0, *self.published]))
        self.crashing(crash, fr.roll_back, self.made, self.command(), RUN, number)

    def command(self):
        self.commands += 1
        return f"command {self.commands}"

    @invariant()
    def no_acknowledged_update_is_lost_and_none_counts_twice(self):
        counted = {(row.device_id, row.round) for row in rows_of(self.made, Accepted)}
        assert self.acknowledged <= counted
        tasks = {(row.device_id, row.round): row for row in rows_of(self.made, Task)}
        assert counted == {name for name, task in tasks.items() if task.state == "answered"}
        for made in rows_of(self.made, Round, state="published"):
            before = self.adapter(made.adapter_before)
            total = sum(1 << int(name[1:]) for name, of in counted if of == made.round)
            assert self.adapter(made.adapter_after) == [*before, [made.round, total]]

    @invariant()
    def rounds_only_go_forward_and_what_was_fixed_stays(self):
        rounds = rows_of(self.made, Round, order="round")
        assert [each.round for each in rounds] == list(range(1, len(rounds) + 1))
        for each in rounds:
            old = self.seen.get(each.round)
            if old is not None:
                assert STATES.index(each.state) >= STATES.index(old.state)
                if old.state != "planned":
                    fixed = ("plan", "adapter_before", "asked", "cohort", "deadline_ms")
                    assert all(getattr(each, name) == getattr(old, name) for name in fixed)
                if old.adapter_after:
                    assert each.adapter_after == old.adapter_after
            self.seen[each.round] = each
            if each.state == "published":
                self.published[each.round] = each.adapter_after

    @invariant()
    def the_run_is_what_its_events_say(self):
        kinds = [row.kind for row in rows_of(self.made, Event, run_id=RUN, order="number")]
        run = fleets.get(self.made, Run, RUN)
        assert run.rounds_done == kinds.count("round-published") == len(self.published)
        assert run.adapter in {"", *self.published.values()}

    def adapter(self, sha256):
        return json.loads(self.made.artefacts.read(sha256)) if sha256 else []


FleetMachine.TestCase.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
TestFleet = FleetMachine.TestCase
