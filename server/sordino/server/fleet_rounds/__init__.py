"""The fleet's durable rounds: devices, tasks, uploads and rounds as named transactions.

`open_fleet` opens a coordinator's folder; the transitions of rounds are called by the driver of a
run (`sordino.server.fleet_run`), the rest by a service for its callers. Nothing here knows gRPC or
Flower. docs/coordinator.md has the
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
from sordino.server.fleet_rounds.context import Fleet, Limits, open_fleet, require
from sordino.server.fleet_rounds.devices import (
    at_hand,
    hello,
    keep_head,
    last_head,
    leave,
    seen,
)
from sordino.server.fleet_rounds.members import Members, open_beside
from sordino.server.fleet_rounds.rounds import (
    COLLECTING,
    Opening,
    aggregate_round,
    close_round,
    fail_round,
    is_due,
    open_round,
    plan_round,
    publish_look,
    publish_round,
)
from sordino.server.fleet_rounds.tasks import (
    acknowledge,
    decline,
    may_fetch,
    order_of,
    read_settings,
    task_for,
    write_settings,
)
from sordino.server.fleet_rounds.upkeep import check_artefacts, collect_garbage, recover
from sordino.server.fleet_rounds.uploads import Stream, finish_upload, offer_upload
from sordino.server.fleet_rounds.work import Work

__all__ = [
    "COLLECTING",
    "AdapterWork",
    "Fleet",
    "Limits",
    "Members",
    "NewRun",
    "Opening",
    "Stream",
    "Work",
    "acknowledge",
    "add_rounds",
    "aggregate_round",
    "at_hand",
    "change_cohort",
    "check_artefacts",
    "clear_device",
    "close_round",
    "collect_garbage",
    "decline",
    "fail_round",
    "finish_upload",
    "hello",
    "is_due",
    "keep_base",
    "keep_head",
    "last_head",
    "leave",
    "may_fetch",
    "offer_upload",
    "open_beside",
    "open_fleet",
    "open_round",
    "order_of",
    "pause_run",
    "plan_round",
    "publish_look",
    "publish_round",
    "read_settings",
    "recover",
    "require",
    "resume_run",
    "revoke_device",
    "roll_back",
    "seen",
    "start_run",
    "stop_run",
    "task_for",
    "write_settings",
]
