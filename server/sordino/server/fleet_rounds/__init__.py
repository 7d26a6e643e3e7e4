"""The fleet's durable rounds: devices, tasks, uploads and rounds as named transactions.

`open_fleet` opens a coordinator's folder; `advance` takes a run on as far as it can go; the rest is
what a service does for its callers. Nothing here knows gRPC or Flower. docs/coordinator.md has the
states, the transactions and what a restart does.
"""

from sordino.server.fleet_rounds.adapters import AdapterWork
from sordino.server.fleet_rounds.commands import (
    NewRun,
    add_rounds,
    change_cohort,
    clear_device,
    keep_base,
    pause_run,
    resume_run,
    revoke_device,
    roll_back,
    start_run,
    stop_run,
)
from sordino.server.fleet_rounds.context import Fleet, Limits, open_fleet
from sordino.server.fleet_rounds.devices import (
    hello,
    keep_head,
    last_head,
    leave,
    seen,
)
from sordino.server.fleet_rounds.loop import (
    advance,
    check_artefacts,
    collect_garbage,
    recover,
    step,
)
from sordino.server.fleet_rounds.members import Members
from sordino.server.fleet_rounds.tasks import acknowledge, decline, may_fetch, task_for
from sordino.server.fleet_rounds.uploads import Stream, finish_upload, offer_upload
from sordino.server.fleet_rounds.work import Work

__all__ = [
    "AdapterWork",
    "Fleet",
    "Limits",
    "Members",
    "NewRun",
    "Stream",
    "Work",
    "acknowledge",
    "add_rounds",
    "advance",
    "change_cohort",
    "check_artefacts",
    "clear_device",
    "collect_garbage",
    "decline",
    "finish_upload",
    "hello",
    "keep_base",
    "keep_head",
    "last_head",
    "leave",
    "may_fetch",
    "offer_upload",
    "open_fleet",
    "pause_run",
    "recover",
    "resume_run",
    "revoke_device",
    "roll_back",
    "seen",
    "start_run",
    "step",
    "stop_run",
    "task_for",
]
