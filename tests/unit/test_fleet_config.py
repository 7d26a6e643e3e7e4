"""`fleet.toml`, and what a run of a fleet is started from."""

import shutil
import tomllib
from dataclasses import replace

import pytest
from support import fleets
from support.federation import LORA, MANIFEST, filled

from sordino.client.model.registry import POCKET, POCKET_FOLDER
from sordino.core.config import ExperimentConfig
from sordino.core.contract import SignedHead, encode_update
from sordino.core.errors import ConfigError, ModelError, TrustError
from sordino.core.records import Receipt, Update
from sordino.core.settings import build
from sordino.privacy.plan import Plan, decode_plan
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.fleet_config import FleetConfig, answer_bytes, load_fleet, new_run
from sordino.server.serving import serving
from sordino.server.store import ArtefactRow

SHIPPED = {POCKET: POCKET_FOLDER}


def written(folder, toml):
    path = folder / "fleet.toml"
    path.write_text(toml)
    return path


def test_what_is_left_out_has_its_default_and_paths_go_from_the_file(tmp_path):
    config = load_fleet(written(tmp_path, 'bases = "models"\n[limits]\nuploads = 7\n'))
    assert (config.folder, config.bases) == (str(tmp_path), str(tmp_path / "models"))
    assert (config.limits.uploads, config.limits.failures) == (7, 3)
    assert config.service_settings(None).fleet_address == config.addresses.fleet
    assert config.passphrase_file == ""
    given = load_fleet(written(tmp_path, 'passphrase_file = "secret"'))
    assert given.passphrase_file == str(tmp_path / "secret")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('hots = ["a"]', "unknown key hots: did you mean hosts"),
        ('[addresses]\nfleet = "here"', "fleet_address HOST:PORT"),
        ('[addresses]\noperator = "x:99999"', "HOST:PORT"),
        ("[limits]\nuploads = 0", "uploads > 0"),
        ("[limits]\nsync = 1", "unknown key limits.sync"),
        ("[service]\nheartbeat_ms = 0", "heartbeat_ms > 0"),
        ("[rounds]\nover_selection = 2.0", r"over_selection in \[0, 1\]"),
        ("[rounds]\npatience = 0", "patience >= 1"),
        ('log = "loud"', "log one of json, text"),
        ("=", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path, toml, said):
    with pytest.raises(ConfigError, match=said):
        load_fleet(written(tmp_path, toml))


def test_plain_text_is_for_this_machine_alone(tmp_path):
    config = load_fleet(written(tmp_path, ""))
    with pytest.raises((ConfigError, TrustError), match="loopback"):
        config.service_settings(None, insecure_loopback=True)


def test_a_file_that_is_not_there_and_a_password_that_is_not_shown(tmp_path):
    with pytest.raises(ConfigError, match="can't read"):
        load_fleet(tmp_path / "fleet.toml")
    config = FleetConfig(database="postgresql+psycopg://me:hunter2@host/name")
    assert "hunter2" not in repr(config)


def test_a_certificate_for_other_hosts_is_said_before_anything_is_opened(tmp_path):
    authority = enroll.new_authority(now_unix_ms=1_700_000_000_000)
    enroll.create_folder(tmp_path, authority)
    issued = enroll.issue_server(authority, ["127.0.0.1"], now_unix_ms=1_700_000_000_000)
    enroll.write_server_certificate(tmp_path, authority, issued)
    config = load_fleet(written(tmp_path, 'hosts = ["fleet.example"]'))
    with pytest.raises(TrustError, match=r"renew-server .* --host fleet\.example"), serving(config):
        pytest.fail("it serves")
    assert not (tmp_path / "coordinator.db").exists()


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    with fleets.fleet(tmp_path / "fleet") as fleet:
        yield fleet


CONFIG = FleetConfig(bases="/nowhere")


def order(made, toml, cohort=4, config=CONFIG):
    return new_run(made, config, "run-1", toml.encode(), cohort, shipped=SHIPPED)


def test_a_run_is_made_of_an_experiments_settings(made):
    config = replace(CONFIG, rounds=replace(CONFIG.rounds, over_selection=0.3, patience=5))
    toml = "[federation]\nrounds = 5\nmin_updates = 3\nround_timeout_s = 90\n"
    toml += "[privacy]\nnoise_multiplier = 1.0\n"
    new = order(made, toml, 10, config)
    run = fr.start_run(made, "start", new)
    assert (run.trust, run.rounds_planned, run.cohort, run.extra) == ("local", 5, 10, 3)
    assert (run.min_updates, run.timeout_ms, run.patience) == (3, 90_000, 5)
    plan = decode_plan(made.artefacts.read(run.plan))
    assert isinstance(plan, Plan)
    assert (plan.run_id, plan.rounds) == ("run-1", 5)
    assert made.artefacts.has(run.base)
    # What is kept says everything: no default of a later version changes it.
    kept = build(ExperimentConfig, tomllib.loads(run.settings))
    assert kept.train.local_steps == plan.steps_per_round
    assert kept.data.clients == 10


def test_an_own_base_is_found_by_its_name(made, tmp_path):
    bases = tmp_path / "bases"
    shutil.copytree(POCKET_FOLDER, bases / "mine")
    config = replace(CONFIG, bases=str(bases))
    toml = '[privacy]\ntrust = "none"\n'
    new = order(made, f'{toml}[model]\nname = "mine"\n', config=config)
    assert new.base == order(made, toml).base  # the same file
    (bases / "mine" / "second.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"one \.gguf file"):
        order(made, '[model]\nname = "mine"\n', config=config)


@pytest.mark.parametrize(
    ("toml", "error", "said"),
    [
        ('[model]\nname = "absent"', ModelError, r"one of the coordinator's \(pocket\)"),
        ('[model]\nname = "../pocket"', ConfigError, "not a path"),
        ('[model]\nname = "/etc"', ConfigError, "not a path"),
        ("model = 3", ConfigError, "model"),
        ("data = 3", ConfigError, "data"),
        ("[privacy]\nseeded_noise = true", ConfigError, "seeded_noise = false on a fleet"),
        ("[federation]\nmin_updates = 5", ConfigError, "min_updates"),
        ("[federation]\nround = 5", ConfigError, "unknown key federation.round"),
        ('[privacy]\ntrust = "central"', ConfigError, "federation.population"),
        ("=", ConfigError, "not valid TOML"),
    ],
)
def test_what_a_fleet_does_not_do_is_refused(made, toml, error, said):
    with pytest.raises(error, match=said):
        order(made, toml)
    with made.store.read() as rows:
        assert rows.all(ArtefactRow) == []


def test_a_cohort_of_nobody_is_refused(made):
    with pytest.raises(ConfigError, match="cohort >= 1"):
        order(made, "", 0)


def test_no_honest_update_is_longer_than_its_limit():
    receipt = Receipt(ledger_head="f" * 64, entry_index=2**62 - 1)
    update = Update(
        run_id="r" * 128,
        round=2**31 - 1,
        plan_sha256="f" * 64,
        tensors=filled(1.0, 1, replace(LORA, aggregation="fedit")),
        receipt=receipt,
    )
    head = SignedHead(receipt=receipt, public_key="ab" * 32, signature="cd" * 64)
    data = encode_update(update, head)
    assert len(data) <= answer_bytes(MANIFEST) < 2 * len(data) + 10_000
