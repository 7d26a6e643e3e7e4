"""The agent's parts without a network: waiting, notes, fetched files, heads, addresses."""

import hashlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from support.contracts import make_order
from support.federation import (
    BASE,
    TinySession,
    filled,
    make_metric,
    make_metric_task,
    make_plan,
    make_task,
    open_plan,
    scripted,
)

from sordino.client.agent.addresses import Address, parse_address
from sordino.client.agent.bridge import RefusedError, ask_app
from sordino.client.agent.cache import ArtefactCache
from sordino.client.agent.heads import check_not_rolled_back, signed_head
from sordino.client.agent.home import (
    Whereabouts,
    load_whereabouts,
    only_agent,
    save_whereabouts,
)
from sordino.client.agent.journal import OUTBOX, TASK, Journal
from sordino.client.agent.sessions import Sessions
from sordino.client.agent.settings import AgentSettings, DeviceSettings, load_settings
from sordino.client.agent.timing import Backoff, FleetClock, Surroundings
from sordino.client.app import make_app
from sordino.client.session import NodeSettings
from sordino.core import contract
from sordino.core.contract import Artefact, Failure
from sordino.core.errors import (
    ConfigError,
    ContractError,
    DataError,
    LedgerError,
    ModelError,
    PolicyRefusedError,
    TrustError,
)
from sordino.core.records import Measurement, Update
from sordino.privacy.ledger import Ledger
from sordino.privacy.ledger.keys import signature_holds
from sordino.privacy.policy import Policy

# --- waiting -----------------------------------------------------------------------------------


def test_waits_double_up_to_five_minutes_and_begin_anew():
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next_s() for _ in range(11)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_up_to_half_of_a_wait_is_left_to_chance():
    for chance, wait in ((0.0, 1.0), (0.5, 0.75), (1.0 - 1e-9, 0.5)):
        assert Backoff(lambda chance=chance: chance).next_s() == pytest.approx(wait)


def test_a_coordinators_word_is_the_least():
    said = Failure(reason="rate-limited", message="", retry="same", retry_after_ms=9000)
    assert Backoff(lambda: 0.0).next_s(said) == 9.0
    assert 9.0 < Backoff(lambda: 0.9).next_s(said) < 10.0  # not all devices at once
    long_ago = Backoff(lambda: 0.0)
    for _ in range(8):
        long_ago.next_s()
    assert long_ago.next_s(said) == 256.0


def test_the_coordinators_clock_is_followed():
    clock = FleetClock(lambda: 1_000)
    assert clock.now_ms() == 1_000
    clock.told(0)  # nothing was said
    assert clock.now_ms() == 1_000
    clock.told(700_000)
    assert clock.now_ms() == 700_000
    clock.told(2**63 - 1)  # no time that could be stated
    assert clock.now_ms() == 700_000


def test_nobody_can_ask_for_a_wait_without_end():
    waits = []
    around = Surroundings(sleep=lambda seconds: waits.append(seconds) or True)
    said = Failure(reason="x", message="", retry="same", retry_after_ms=2**64 - 1)
    assert around.pause(Backoff(lambda: 0.0).next_s(said))
    assert waits == [86_400.0]


def test_a_pause_ends_when_the_agent_is_to_stop():
    around = Surroundings()
    threading.Timer(0.05, around.stop.set).start()
    assert around.pause(60.0)


# --- addresses ---------------------------------------------------------------------------------


def test_addresses():
    assert parse_address("[::1]:8443").next_port() == Address("::1", 8444)
    assert str(parse_address("[::1]:8443")) == "[::1]:8443"
    assert str(parse_address("c.example:1").next_port()) == "c.example:2"
    for wrong in ("", "host", "host:", ":80", "::1:80", "host:0", "host:65536", "host:٣", "h:1x"):
        with pytest.raises(TrustError, match="as host:port"):
            parse_address(wrong)
    with pytest.raises(TrustError):
        Address("h", 65535).next_port()


def test_the_coordinators_addresses_are_kept(tmp_path):
    with pytest.raises(TrustError, match="belongs to no fleet"):
        load_whereabouts(tmp_path)
    where = Whereabouts(enroll="c:1", fleet="c:2")
    save_whereabouts(tmp_path, where)
    assert load_whereabouts(tmp_path) == where
    (tmp_path / "fleet.json").write_text('{"enroll": "c:1"}')
    with pytest.raises(TrustError, match="doesn't hold"):
        load_whereabouts(tmp_path)


def test_one_agent_a_folder(tmp_path):
    with (
        only_agent(tmp_path / "new"),
        pytest.raises(TrustError, match="another agent"),
        only_agent(tmp_path / "new"),
    ):
        pass
    with only_agent(tmp_path / "new"):
        pass


# --- the journal -------------------------------------------------------------------------------


def noted(tmp_path, answer=b""):
    journal = Journal(tmp_path)
    journal.note(contract.encode_task(make_order()))
    if answer:
        journal.keep(answer)
    return Journal(tmp_path)  # another process


def test_a_task_and_its_answer_outlast_the_process(tmp_path):
    assert Journal(tmp_path).read() is None
    assert noted(tmp_path).read().order == make_order()
    assert noted(tmp_path).read().answer is None
    journal = noted(tmp_path, b"answer")
    found = journal.read()
    assert found.answer == Artefact.of(b"answer")
    path = journal.path_of(found.answer)
    assert path.read_bytes() == b"answer"
    assert path.stat().st_mode & 0o777 == 0o600
    journal.forget()
    assert Journal(tmp_path).read() is None
    assert not path.exists()


def test_an_answer_may_be_kept_after_a_restart(tmp_path):
    journal = noted(tmp_path)
    journal.read()
    journal.keep(b"answer")
    assert Journal(tmp_path).read().answer == Artefact.of(b"answer")


def test_a_new_task_forgets_the_one_before(tmp_path):
    journal = noted(tmp_path, b"answer")
    journal.read()
    journal.note(contract.encode_task(make_order(task_id="task-2")))
    assert Journal(tmp_path).read().order.task_id == "task-2"
    assert list((tmp_path / OUTBOX).iterdir()) == []


def test_a_damaged_answer_is_no_answer(tmp_path):
    journal = noted(tmp_path, b"answer")
    journal.path_of(Artefact.of(b"answer")).write_bytes(b"answeR")
    assert journal.read().order == make_order()
    assert journal.read().answer is None
    assert list((tmp_path / OUTBOX).iterdir()) == []


def test_a_journal_that_cannot_be_read_is_forgotten(tmp_path):
    noted(tmp_path, b"answer")
    whole = json.loads((tmp_path / TASK).read_text())
    for spoilt in (
        {**whole, "version": 2},
        {**whole, "task": "AAAA"},
        {**whole, "task": "not base64!"},
        {**whole, "answer": ["x", 1]},
        {**whole, "answer": [1]},
        {"version": 1},
        [],
        7,
    ):
        (tmp_path / TASK).write_text(json.dumps(spoilt))
        assert Journal(tmp_path).read() is None
        assert not (tmp_path / TASK).exists()
    (tmp_path / TASK).write_text(json.dumps(whole)[:-9])
    assert Journal(tmp_path).read() is None


# --- fetched files -----------------------------------------------------------------------------

DATA = bytes(range(256)) * 40


class Remote:
    """Pieces of a file; `cut` of them come, then the connection breaks."""

    def __init__(self, data=DATA, cut=10**9, piece=1000):
        self.data, self.cut, self.piece, self.asked = data, cut, piece, []

    def __call__(self, offset):
        self.asked.append(offset)
        for number, at in enumerate(range(offset, len(self.data), self.piece)):
            if number == self.cut:
                raise ConnectionError("cut")
            yield at, self.data[at : at + self.piece]


def test_a_fetch_goes_on_where_it_was_cut(tmp_path):
    cache, artefact = ArtefactCache(tmp_path / "new", 10**6), Artefact.of(DATA)
    remote = Remote(cut=3)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            cache.fetch(artefact, remote)
    assert cache.find(artefact) is None
    path = cache.fetch(artefact, Remote())
    assert path.read_bytes() == DATA
    assert remote.asked == [0, 3000, 6000]
    assert cache.fetch(artefact, None) == path  # nothing is asked for again
    assert cache.used_bytes() == len(DATA)


def test_what_a_crash_left_wrong_is_fetched_anew(tmp_path):
    cache, artefact = ArtefactCache(tmp_path, 10**6), Artefact.of(DATA)
    for left in (b"\0" * 500, DATA[:-1] + b"!", DATA + b"more"):
        (tmp_path / f"{artefact.sha256}.part").write_bytes(left)
        path = cache.fetch(artefact, Remote(), suffix=".gguf")
        assert path.read_bytes() == DATA
        path.unlink()


def test_what_is_not_the_file_is_refused_and_deleted(tmp_path):
    cache, artefact = ArtefactCache(tmp_path, 10**6), Artefact.of(DATA)
    for remote, word in (
        (Remote(DATA[:-1] + b"!"), "wrong-hash"),
        (Remote(DATA + b"more", piece=10_000), "too-long"),
        (Remote(DATA[:-1]), "truncated"),
        (lambda offset: [(offset + 1, DATA)], "wrong-offset"),
    ):
        with pytest.raises(ContractError) as caught:
            cache.fetch(artefact, remote)
        assert caught.value.reason == word
        assert cache.find(artefact) is None
        for part in tmp_path.glob("*.part"):
            part.unlink()


def test_the_least_used_file_goes_first_and_what_is_needed_stays(tmp_path):
    cache = ArtefactCache(tmp_path, 3000)
    files = [bytes([n]) * 1000 for n in range(4)]
    paths = [cache.fetch(Artefact.of(d), Remote(d)) for d in files[:3]]
    for age, path in enumerate(paths):
        os.utime(path, (age, age))
    assert cache.find(Artefact.of(files[0])) == paths[0]  # used now
    cache.fetch(Artefact.of(files[3]), Remote(files[3]), needed=[paths[1]])
    assert [path.exists() for path in paths] == [True, True, False]
    big = b"b" * 2500
    with pytest.raises(DataError, match="storage_mb"):
        cache.fetch(Artefact.of(big), Remote(big), needed=[paths[1]])
    with pytest.raises(DataError, match="storage_mb"):
        cache.fetch(Artefact.of(DATA), Remote())
    assert cache.used_bytes() <= 3000


# --- heads of the ledger -----------------------------------------------------------------------


def test_a_head_is_any_entry_as_it_was_signed(tmp_path):
    path = tmp_path / "ledger.db"
    assert signed_head(path) is None
    ledger = Ledger(path, "alice")
    heads = [signed_head(path)]
    for number in (1, 2):
        ledger.charge(make_plan(), number, "tiny")
        if number == 1:
            ledger.rotate_key()
        heads.append(signed_head(path))
    for head in heads:
        receipt = head.receipt
        assert signature_holds(head.public_key, receipt.ledger_head, head.signature)
        assert signed_head(path, receipt.entry_index) == head
        check_not_rolled_back(path, head)
    assert ledger.head.sha256 == heads[-1].receipt.ledger_head
    for index in range(ledger.head.index + 1):  # the entry of the rotation among them
        head = signed_head(path, index)
        assert signature_holds(head.public_key, head.receipt.ledger_head, head.signature)
    assert signed_head(path, ledger.head.index + 1) is None


def test_a_ledger_that_was_rolled_back_is_seen(tmp_path):
    ledger = Ledger(tmp_path / "a.db", "alice")
    ledger.charge(make_plan(), 1, "tiny")
    kept = signed_head(tmp_path / "a.db")
    other = Ledger(tmp_path / "b.db", "alice")
    for path in ("b.db", "none.db"):  # behind; gone
        with pytest.raises(LedgerError, match="rolled back"):
            check_not_rolled_back(tmp_path / path, kept)
    for number in (1, 2):
        other.charge(make_plan(), number, "tiny")
    with pytest.raises(LedgerError, match="rolled back"):  # another ledger, as long
        check_not_rolled_back(tmp_path / "b.db", kept)
    with pytest.raises(ContractError, match="wrong-receipt"):  # a coordinator can't make one up
        check_not_rolled_back(tmp_path / "b.db", replace(kept, signature="00" * 64))


# --- Flower ------------------------------------------------------------------------------------


def tiny_app(session):
    return make_app(lambda config: session)


def test_the_app_answers_a_task_and_a_look(tmp_path):
    session = TinySession("alice", tmp_path)
    update = ask_app(tiny_app(session), {"client": "alice"}, make_task(), ttl_s=60)
    assert isinstance(update, Update)
    assert update.plan_sha256 == make_plan().sha256
    again = ask_app(tiny_app(session), {"client": "alice"}, make_task(), ttl_s=60)
    assert again.receipt == update.receipt
    assert session.trained == 1
    measured = ask_app(tiny_app(session), {}, make_metric_task(), ttl_s=60)
    assert isinstance(measured, Measurement)
    assert measured.plan_sha256 == make_metric().sha256


def test_the_apps_refusal_keeps_its_word(tmp_path):
    session = TinySession("alice", tmp_path, policy=Policy(trust=("central",)))
    with pytest.raises(RefusedError) as caught:
        ask_app(tiny_app(session), {}, make_task(), ttl_s=60)
    assert caught.value.word == "policy-trust"
    session = TinySession("alice", tmp_path, fail=ValueError("a record said: hunter2"))
    with pytest.raises(RefusedError) as caught:
        ask_app(tiny_app(session), {}, make_task(), ttl_s=60)
    assert str(caught.value) == "the client refuses: internal"


def test_any_client_app_will_do(tmp_path):
    update = ask_app(scripted, {"value": 0.5}, make_task(), ttl_s=60)
    assert all((update.tensors[n] == t).all() for n, t in filled(0.5).items())
    with pytest.raises(RefusedError, match="internal"):
        ask_app(scripted, {"value": 0.5, "behaviour": "extra-record"}, make_task(), ttl_s=60)


# --- settings and sessions ---------------------------------------------------------------------


def write(tmp_path, text):
    path = tmp_path / "device.toml"
    path.write_text(text)
    return path


def test_settings_are_read(tmp_path):
    path = write(
        tmp_path,
        '[node]\nuser = "a"\nmemory_mb = 300\n[agent]\nsend_calibration = true\n'
        "[work]\ncharging = true\n",
    )
    found = load_settings(path).in_folder(tmp_path)
    assert found.node.memory_mb == 300
    assert found.agent.send_calibration
    assert found.work.charging
    assert found.node_config()["state_dir"] == str(tmp_path / "state")
    assert found.node_config(model="m.gguf")["model"] == "m.gguf"
    mine = replace(found, node=replace(found.node, state_dir="/mine")).in_folder(tmp_path)
    assert mine.node.state_dir == "/mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node]\n", "node.user not empty"),
        ("", "node.user not empty"),
        ('[node]\nuser = "a"\nnoise_seed = 3\n', "node.noise_seed < 0 unless node.allow_no"),
        ('[node]\nuser = "a"\nmodle = "x"\n', "did you mean model"),
        ('[node]\nuser = "a"\n[agent]\nstorage_mb = 0\n', "agent.storage_mb >= 1"),
        ("[node", "not valid TOML"),
    ],
)
def test_settings_that_are_refused(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        load_settings(write(tmp_path, text))
    with pytest.raises(ConfigError, match="write one"):
        load_settings(tmp_path / "none.toml")


def sessions(tmp_path, policy=None, **agent):
    opened = []

    def open_session(config):
        opened.append(config["model"])
        base = BASE if config["model"] == "pocket" else hashlib.sha256(b"other").hexdigest()
        session = TinySession("alice", tmp_path, base_sha256=base)
        session.policy = policy or session.policy
        return session

    settings = DeviceSettings(node=NodeSettings(user="alice"), agent=AgentSettings(**agent))
    return Sessions(settings, open_session), opened


def test_only_the_installed_base_unless_the_owner_says_otherwise(tmp_path):
    mine, _ = sessions(tmp_path)
    own, other = make_order(), make_order(base=Artefact.of(b"other"))

    def never(base):
        raise AssertionError("nothing is fetched")

    assert mine.of_base(own, never).session.base_sha256 == BASE
    with pytest.raises(ModelError, match=r"agent\.fetch_base"):
        mine.of_base(other, never)
    allowed, opened = sessions(tmp_path, fetch_base=True)
    ready = allowed.of_base(other, lambda base: Path("/cache/it.gguf"))
    assert ready.session.base_sha256 == other.base.sha256
    assert opened == ["pocket", "/cache/it.gguf"]
    with pytest.raises(ModelError):  # what was made of a folder doesn't travel
        allowed.of_base(replace(other, base_kind="folder"), never)
    strict, _ = sessions(tmp_path, policy=Policy(base_models=(BASE,)), fetch_base=True)
    with pytest.raises(PolicyRefusedError, match="policy-base"):
        strict.of_base(other, never)


def test_a_plan_without_privacy_goes_through_the_bridge_too(tmp_path):
    session = TinySession("alice", tmp_path, allow_no_privacy=True)
    update = ask_app(tiny_app(session), {}, make_task(plan=open_plan()), ttl_s=60)
    assert update.receipt is None
