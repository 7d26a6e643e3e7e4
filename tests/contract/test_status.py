"""The status page, the figures and the state of health, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fleets
from support.central import make_central
from support.federation import make_metric, make_plan
from support.fleets import RUN, get
from support.members import DAY
from support.operators import Operated, operated
from support.statuses import Shown, shown

from sordino.core.errors import ConfigError, TrustError
from sordino.privacy.plan import guarantee
from sordino.server import fleet_rounds as fr
from sordino.server.report import formats
from sordino.server.status import StatusServer, StatusSettings
from sordino.server.store import Device, Run

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text("utf-8")


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "fleet") as made:
        yield made


@pytest.fixture
def page(at: Operated) -> Iterator[Shown]:
    with shown(at) as made:
        yield made


def text(page: str) -> str:
    """What a reader sees, without the marks."""
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]))


def samples(figures: str) -> dict[str, float]:
    """Prometheus' text: what stands before each value."""
    lines = [line for line in figures.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


# --- the page ----------------------------------------------------------------------------------


def test_what_the_page_shows(at: Operated, page: Shown) -> None:
    at.start()
    at.finish_round("d2")
    at.finish_round()
    at.online.add("d0")
    answer, body = page.ask()
    assert answer.status == 200
    seen = text(body)
    for words in (
        "serving",
        "Devices online 1",
        "Devices offline 2",
        "run-1 running",
        "Rounds done 2 of 3",
        "Bytes received 123\u202fMB",
        "Updates accepted 5",
        "Updates refused 2",
        "1 policy-budget",
        "Nothing to look at",
    ):
        assert words in seen, words
    assert f"2 done 3 3 0 {formats.size(sum(sizes(2)))}" in seen
    assert f"1 done 3 2 1 policy-budget {formats.size(sum(sizes(1)))}" in seen


def sizes(number: int) -> list[int]:
    count = 3 if number == 2 else 2
    return [len(fleets.update_of(f"d{one}", number)) for one in range(count)]


def test_epsilon_by_group_with_all_that_it_means(at: Operated, page: Shown) -> None:
    at.start()
    at.finish_round("d2")
    at.finish_round()
    seen, plan = text(page.ask()[1]), make_plan()
    for devices, rounds in ((1, 1), (2, 2)):
        events = [plan.round_event()] * rounds
        epsilon = formats.epsilon(guarantee(plan, events, composition="").epsilon_pld)
        assert f" {devices} {rounds} {epsilon} not bounded" in seen
    for words in ("δ = 10⁻⁵", "add-or-remove-one", "sampling poisson", "PLD", "trust model local"):
        assert seen.count(words) == 3  # both units of the promise, and what was released
    assert "the rounds of this run that are named and no other" in seen


def test_an_answer_that_was_refused_counts_as_released(at: Operated, page: Shown) -> None:
    at.start()
    task = fleets.take(at.fleet, "d0")
    bad = fleets.update_of("d0", 1, value="nan")
    assert fleets.refusal(fleets.send, at.fleet, at.work, task, bad) == "not-finite"
    plan = make_plan()
    one = formats.epsilon(guarantee(plan, [plan.round_event()], composition="").epsilon_pld)
    assert f" 1 1 {one} not bounded" in text(page.ask()[1])


def test_paid_looks_are_counted_and_shown(at: Operated, page: Shown) -> None:
    metric, plan = make_metric(), make_plan()
    at.start(metric=metric.canonical())
    at.finish_round("d2")
    at.look("d0")
    at.look()
    seen = text(page.ask()[1])
    rounds, look = plan.round_event(), metric.round_event()
    # d2 sold two looks and answered no round; d0 a round and a look; d1 a round and two looks.
    for devices, answers, events in (
        (1, 2, [look, rounds]),
        (1, 2, [look, look]),
        (1, 3, [look, look, rounds]),
    ):
        epsilon = formats.epsilon(guarantee(plan, events, composition="").epsilon_pld)
        assert f" {devices} {answers} {epsilon} not bounded" in seen
    assert "2 loss 2.500 0.250 2" in seen
    assert 'sordino_run_metric{run="run-1",metric="loss"} 2.5' in page.ask("/metrics")[1]
    assert f"{RUN}:loss" not in seen


def test_the_tally_of_rounds_that_are_over_is_the_same_as_a_new_count(
    at: Operated, page: Shown
) -> None:
    at.start()
    for silent in ("d0", "d1"):
        page.ask()
        at.finish_round(silent)
    fleets.answer(at.fleet, at.work, "d2")
    with shown(at) as new:
        one, other = (text(each.ask()[1]) for each in (page, new))
    cut = slice(one.index("What was released"), one.index("Newest rounds"))
    assert one[cut] == other[cut]
    assert " 2 1 " in one[cut]
    assert " 1 3 " in one[cut]


def test_under_central_trust_the_page_and_the_figures_tell_no_count(
    at: Operated, page: Shown
) -> None:
    at.start(make_central(), cohort=4, min_updates=1)
    at.finish_round("d2")
    with at.fleet.store.write("test") as tx:
        tx.change(tx.find(Device, "d1"), state="resting", failures=4)
    body, figures = page.ask()[1], page.ask("/metrics")[1]
    seen = text(body)
    assert "Devices resting 0" in seen
    for words in ("Bytes received", "Updates", "policy-budget", "Calls", "Devices waiting"):
        assert words not in seen
    dash = formats.UNKNOWN
    assert f" 1 done {dash} {dash} {dash} {dash} " in seen
    assert "every user 1 " in seen
    assert "trust model central" in seen
    for name in ("asked", "received", "dropped", "bytes_total", "calls", "waiting", "updates"):
        assert f"sordino_{name}" not in figures
        assert f"sordino_round_{name}" not in figures
    assert 'sordino_devices{state="resting"} 0' in figures


def test_central_releases_are_charged_whether_or_not_they_were_kept(
    at: Operated, page: Shown
) -> None:
    plan = make_central()
    at.start(plan, cohort=4, min_updates=1)
    at.finish_round()
    for name in ("d0", "d1", "d2"):
        fleets.answer(at.fleet, at.work, name)
    fr.close_round(at.fleet, at.work, RUN, 2)
    fr.fail_round(at.fleet, RUN, 2, "release-lost")
    events = [plan.releases.round_event()] * 2
    epsilon = formats.epsilon(guarantee(plan, events, composition="").epsilon_pld)
    record = formats.epsilon(guarantee(plan, events, composition="").record_epsilon)
    assert f"every user 2 {record} {epsilon}" in text(page.ask()[1])


def test_a_run_without_privacy_says_so(at: Operated, page: Shown) -> None:
    from sordino.privacy.plan import NoPrivacyPlan

    plan = NoPrivacyPlan(run_id=RUN, rounds=3, steps_per_round=3, sampling_rate=0.5, divisor=4.0)
    at.start(plan)
    at.finish_round()
    seen = text(page.ask()[1])
    assert "No bound on ε holds, for a record or for a user" in seen
    assert "What was released" not in seen


def test_everything_that_others_chose_is_escaped(at: Operated, page: Shown) -> None:
    at.start()
    evil = '"><script>alert(1)</script>'
    with at.fleet.store.write("test") as tx:
        tx.change(tx.find(Run, RUN), reason=evil, state="failed")
        fr.context.tell(at.fleet, tx, "alarm-disk-full", message=evil)
        fr.context.tell(at.fleet, tx, "run-failed", run_id=RUN, reason=evil)
    body = page.ask()[1]
    assert "<script" not in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body


def test_alarms_are_shown(at: Operated, page: Shown) -> None:
    with at.fleet.store.write("test") as tx:
        fr.context.tell(at.fleet, tx, "ledger-rolled-back", device_id="d1", entry=7)
    at.clock.by_ms += 80 * DAY
    with at.fleet.store.write("test") as tx:
        fr.context.tell(at.fleet, tx, "ledger-rolled-back", device_id="d2", entry=9)
    seen = text(page.ask()[1])
    assert "certificate-ends , now" in seen
    assert "the ledger of d2 is behind entry 9" in seen
    assert "the ledger of d1" not in seen
    assert 'sordino_alarm{reason="certificate-ends"} 1' in page.ask("/metrics")[1]


# --- what a browser may do ---------------------------------------------------------------------


def test_the_page_holds_nothing_but_itself(page: Shown) -> None:
    answer, body = page.ask()
    policy = answer.headers["Content-Security-Policy"]
    style = re.search(r"<style>(.*)</style>", body, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    for mark in ("<script", "<img", "<link", "<iframe", "http://", "https://", "url(", "style="):
        assert mark not in body, mark
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Server" not in answer.headers


def test_another_sites_name_that_leads_here_gets_nothing(at: Operated, page: Shown) -> None:
    for path in ("/", "/metrics", "/health"):
        answer, body = page.ask(path, Host="evil.example")
        assert answer.status == 421
        assert "sordino_" not in body
        assert "<" not in body
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80"):
        assert page.ask("/health", Host=host)[0].status == 200
    with shown(at, hosts=("fleet.example",)) as proxied:
        assert proxied.ask(Host="fleet.example")[0].status == 200


def test_nothing_else_is_served(page: Shown) -> None:
    for path in ("/docs", "/openapi.json", "/redoc", "/../ca.key", "/static/x"):
        answer, _ = page.ask(path)
        assert answer.status == 404, path
        assert answer.headers["Content-Security-Policy"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert page.ask("/", method)[0].status == 405


# --- figures and health ------------------------------------------------------------------------


def test_the_figures(at: Operated, page: Shown) -> None:
    at.start()
    at.finish_round("d2")
    answer, body = page.ask("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(body)
    assert found["sordino_ready"] == 1
    assert found['sordino_devices{state="offline"}'] == 3
    assert found['sordino_runs{state="running"}'] == 1
    assert found[f'sordino_run_rounds_done{{run="{RUN}"}}'] == 1
    assert found[f'sordino_round{{run="{RUN}"}}'] == 2
    assert found[f'sordino_round_asked{{run="{RUN}"}}'] == 3
    assert found["sordino_received_bytes_total"] == 123_456_789
    assert found['sordino_failures_total{method="PushUpdate",word="over-norm"}'] == 2
    record, user = (line for line in body.splitlines() if line.startswith("sordino_run_epsilon{"))
    plan = make_plan()
    epsilon = guarantee(plan, [plan.round_event()] * 3, composition="").epsilon_pld
    assert float(record.rpartition(" ")[2]) == epsilon
    assert user.endswith(" +Inf")
    for label in ("delta", "unit", "neighbouring", "sampling", "accountant", "scope", "trust"):
        assert f'{label}="' in record
    for name in re.findall(r"# TYPE sordino_(\w+)", body):
        assert f"`{name}`" in PAGE, name
    for line in body.splitlines():
        assert re.fullmatch(
            r"# (HELP|TYPE) sordino_[a-z_]+ .+|sordino_[a-z_]+(\{[^{}]+\})? [-+.\deInf]+", line
        ), line


def test_health_and_readiness(page: Shown) -> None:
    assert page.ask("/health")[0].status == 200
    assert page.ask("/ready")[1] == '{"ready":true}'
    page.ready[0] = False
    answer, body = page.ask("/ready")
    assert (answer.status, body) == (503, '{"ready":false}')
    assert page.ask("/health")[0].status == 200
    assert "not serving" in page.ask()[1]


def test_a_store_that_cannot_be_read(at: Operated, page: Shown) -> None:
    at.start()
    plan = get(at.fleet, Run, RUN).plan
    (at.folder / "artefacts" / plan[:2] / plan).unlink()
    for path in ("/", "/metrics"):
        answer, body = page.ask(path)
        assert answer.status == 503
        assert plan not in body
    assert page.ask("/health")[0].status == 200


def test_where_it_may_be(at: Operated) -> None:
    for address in ("0.0.0.0:1", "10.0.0.1:80", "[::]:1"):
        with pytest.raises(ConfigError, match="loopback"):
            StatusSettings(address=address)
        assert StatusSettings(address=address, hosts=("fleet.example",))
    for address in ("localhost:80", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"):
        with pytest.raises(ConfigError, match="ADDRESS:PORT"):
            StatusSettings(address=address)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = StatusSettings(address=f"127.0.0.1:{taken.getsockname()[1]}")
        server = StatusServer(
            at.fleet,
            at.folder,
            settings,
            figures=lambda: pytest.fail("nobody asked"),
            online=set,
            ready=lambda: True,
        )
        with pytest.raises(TrustError, match="can't listen"), server:
            pass
