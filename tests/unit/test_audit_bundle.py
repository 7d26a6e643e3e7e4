"""`audit.json` and the signed bundle: every figure again from raw scores, offline."""

import json
import os
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
from support.audits import charged, make_audit, make_bundle, one_of_each, private_plan

from sordino.core import canonical
from sordino.core.errors import AuditError, ClaimError, TrustError
from sordino.privacy.audit import (
    MEASURES,
    RED_ALARM,
    Audit,
    Exposure,
    Suffix,
    check_bounds,
    coin_defects,
    decode_audit,
    decode_claim,
    encode_audit,
    make_auditor_key,
    measured,
    mismatches,
    public_key_of,
    recompute,
    sign_bundle,
    verify_bundle,
)


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "keys" / "auditor.pem"
    make_auditor_key(path)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A bundle's files, made once: a ledger and a claim take a while."""
    return make_bundle(tmp_path_factory.mktemp("sound"), leak=0.5)


@pytest.fixture
def bundle(tmp_path, sound):
    return shutil.copytree(sound, tmp_path / "bundle")


def edit(path, change):
    tree = json.loads(path.read_bytes())
    change(tree)
    path.write_bytes(canonical.encode(tree))


def test_an_audit_reads_back_as_it_was_written():
    audit = make_audit(None, 2.0)
    data = encode_audit(audit)
    again = decode_audit(data)
    assert encode_audit(again) == data
    assert again.entries[0].measure == audit.entries[0].measure
    assert mismatches(again, recompute(again)) == ()


def test_numpy_s_numbers_and_whole_ones_become_what_is_meant():
    ranks, times = tuple(np.array([1.5, 2.0])), (1, 1)
    given = Exposure(
        adversary="user", ranks=(1, *ranks), repetitions=(1, *times), space=9, exact=True
    )
    entry = measured("private", given)
    assert [type(rank) for rank in entry.measure.ranks] == [float] * 3
    audit = Audit(run_id="r", entries=(entry,))
    assert decode_audit(encode_audit(audit)).entries[0].measure == entry.measure
    with pytest.raises(AuditError, match=r"exposure.exact"):
        measured("private", replace(entry.measure, exact=3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(version=2), "version 1"),
        (lambda tree: tree.update(more=1), "unknown key more"),
        (lambda tree: tree["entries"][0].update(measure="guess"), "one of one-run"),
        (lambda tree: tree["entries"][0]["scores"].update(delta="small"), "one-run.delta"),
        (lambda tree: tree["entries"][0]["scores"].update(level=2.0), "level"),
        (lambda tree: tree["entries"][0]["scores"].pop("coins"), "coins is required"),
        (lambda tree: tree["entries"][0].update(figures=[]), "figures"),
        (lambda tree: tree.update(entries=3), "can't be read"),
        (lambda tree: tree["openings"][0].update(nonce="12"), "32 bytes"),
    ],
)
def test_what_is_no_audit_is_refused(tmp_path, change, words):
    path = tmp_path / "audit.json"
    path.write_bytes(encode_audit(make_audit(None, 2.0)))
    edit(path, change)
    with pytest.raises(AuditError, match=words):
        decode_audit(path.read_bytes())


def test_nan_never_gets_into_an_audit():
    audit = make_audit(None, 2.0)
    with pytest.raises(AuditError, match="can't be written"):
        encode_audit(replace(audit, context={"seconds": float("nan")}))


def test_every_kind_of_measure_reads_back_and_computes_the_same_figures():
    entries = tuple(measured("private", measure) for measure in one_of_each())
    assert {entry.measure.kind for entry in entries} == set(MEASURES)
    assert all(isinstance(entry.figures["verdict"], str) for entry in entries)
    data = encode_audit(Audit(run_id="r", entries=entries))
    audit = decode_audit(data)
    assert [entry.measure for entry in audit.entries] == [entry.measure for entry in entries]
    assert mismatches(audit, recompute(audit)) == ()
    assert encode_audit(recompute(audit)) == data


@pytest.mark.parametrize("measure", one_of_each(), ids=lambda measure: measure.kind)
def test_a_changed_figure_of_any_kind_is_named(measure):
    entry = measured("private", measure)
    stored = replace(entry, figures={**entry.figures, "verdict": "all is well"})
    audit = Audit(run_id="r", entries=(stored,))
    (found,) = mismatches(audit, recompute(audit))
    assert "verdict is" in found
    assert measure.kind in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["entries"][2]["scores"].update(deviation=1e-200), "has no figures"),
        (lambda t: t["entries"][2]["scores"].update(coordinates=10**400), "coordinates"),
        (lambda t: t["entries"][2]["scores"].update(squares=10**400), "can't be read"),
    ],
)
def test_absurd_numbers_are_refused(tmp_path, change, words):
    path = tmp_path / "audit.json"
    entries = tuple(measured("private", measure) for measure in one_of_each())
    path.write_bytes(encode_audit(Audit(run_id="r", entries=entries)))
    edit(path, change)
    with pytest.raises(AuditError, match=words):
        recompute(decode_audit(path.read_bytes()))


def test_a_sound_bundle_has_nothing_wrong(bundle, key):
    manifest = sign_bundle(bundle, key, {"adapter": "ab" * 32})
    root = decode_audit((bundle / "audit.json").read_bytes()).commitments.root
    found = verify_bundle(bundle, public_key_of(key), root)
    assert (found.defects, found.alarms, found.exit_code) == ((), (), 0)
    assert len(found.compared) == 1
    assert "<=" in found.compared[0]
    assert manifest.adapters == {"adapter": "ab" * 32}


def test_a_run_without_privacy_claims_nothing(tmp_path, key):
    bundle = make_bundle(tmp_path, claimed=False)
    sign_bundle(bundle, key, {})
    found = verify_bundle(bundle)
    assert (found.exit_code, found.compared) == (0, ())


def leaking(bundle):
    """The same run with scores that tell every coin: 100 of 100 right guesses show ε > 3.49."""

    def tell(tree):
        scores = tree["entries"][0]["scores"]
        scores["scores"] = [50.0 * coin for coin in scores["coins"]]

    edit(bundle / "audit.json", tell)
    audit = recompute(decode_audit((bundle / "audit.json").read_bytes()))
    (bundle / "audit.json").write_bytes(encode_audit(audit))
    return bundle


def test_scores_that_contradict_the_claim_are_a_red_alarm(bundle, key):
    sign_bundle(leaking(bundle), key, {})
    found = verify_bundle(bundle)
    assert found.exit_code == RED_ALARM == 3
    assert "ALARM" in found.alarms[0]
    assert ">" in found.compared[0]
    assert found.defects == ()


def test_an_alarm_can_t_be_edited_away(bundle, key):
    def calm(tree):
        for entry in tree["entries"]:
            entry["figures"].update(alarm=False, epsilon_lower=0.1)

    edit(leaking(bundle) / "audit.json", calm)
    sign_bundle(bundle, key, {})
    found = verify_bundle(bundle)
    assert found.exit_code == RED_ALARM
    assert any("epsilon_lower" in defect for defect in found.defects)


SCORES = [
    (lambda t: t["entries"][0]["figures"].update(epsilon_lower=0.0), "epsilon_lower is"),
    (lambda t: t["entries"][0]["figures"].pop("ceiling"), "is {"),
    (lambda t: t["entries"][0]["scores"]["scores"].reverse(), "stored as"),
    (lambda t: t["entries"][0]["scores"]["coins"].reverse(), "other coins"),
    (lambda t: t["entries"][0]["scores"].update(claimed_epsilon=9.0), "the claim's is"),
    (lambda t: t["entries"][0]["scores"].update(delta=1e-3), "delta 0.001"),
    (lambda t: t["entries"][0]["scores"].update(unit="user"), "unit user"),
    (lambda t: t["entries"][0]["scores"].update(level=1e-9), "level 1e-09"),
    (lambda t: t["entries"].append(t["entries"][0]), "for 1 looks, and there are 2"),
    (lambda t: t["entries"][0]["scores"]["curve"].pop(), "another curve"),
    (lambda t: t["entries"][0]["scores"].update(canaries=list(range(1, 201))), "wasn't comm"),
    (lambda t: t["openings"][3].update(canary="another"), "canary 3 is not"),
    (lambda t: t.update(commitments=None), "weren't committed to"),
]


@pytest.mark.parametrize(("change", "words"), SCORES)
def test_whatever_was_edited_before_signing_shows(tmp_path, sound, change, words):
    """What `verify_bundle` asks of an audit and its claim, without the ledger behind them."""
    path = tmp_path / "audit.json"
    path.write_bytes((sound / "audit.json").read_bytes())
    edit(path, change)
    audit = decode_audit(path.read_bytes())
    again = recompute(audit)
    card = decode_claim((sound / "claim.json").read_bytes())
    bounds = check_bounds(again.entries, card)
    defects = [*mismatches(audit, again), *coin_defects(audit), *bounds.defects]
    assert any(words in defect for defect in defects), defects


def test_a_bundle_tells_of_all_of_it(bundle, key):
    for change, _ in SCORES[3:6]:
        edit(bundle / "audit.json", change)
    edit(bundle / "audit.json", lambda t: t["entries"][0].update(label="public"))
    sign_bundle(bundle, key, {})
    found = verify_bundle(bundle)
    for words in ("stored as", "other coins", "the claim's is", "delta 0.001"):
        assert any(words in defect for defect in found.defects), found.defects


def test_an_audit_that_holds_nothing_against_the_claim_shows(bundle, key):
    edit(bundle / "audit.json", lambda t: t["entries"][0].update(control="none of it"))
    sign_bundle(bundle, key, {})
    assert "no lower bound is held against the claim" in verify_bundle(bundle).defects


def test_whatever_is_edited_after_signing_shows(bundle, key):
    names = ["audit.json", "config.toml", "claim.json", "ledger.jsonl"]
    sign_bundle(bundle, key, {})
    for name in names:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)
    found = verify_bundle(bundle, public_key_of(key))
    assert {f"{name} is not what was signed" for name in names} <= set(found.defects)
    assert found.exit_code == 1


def test_missing_and_added_files_show(tmp_path, bundle, key):
    sign_bundle(bundle, key, {})
    (bundle / "notes.txt").write_text("hello")
    (bundle / "config.toml").unlink()
    found = verify_bundle(bundle).defects
    assert "notes.txt isn't in the manifest" in found
    assert "config.toml is missing" in found
    with pytest.raises(AuditError, match=r"config.toml is missing"):
        sign_bundle(bundle, key, {})


def test_another_signer_shows_against_a_known_key(tmp_path, bundle, key):
    other = tmp_path / "other.pem"
    known = make_auditor_key(other)
    sign_bundle(bundle, key, {})
    assert any("not signed by the key" in d for d in verify_bundle(bundle, known).defects)
    edit(bundle / "bundle.json", lambda tree: tree.update(public_key=known))
    assert any("not signed by the key" in d for d in verify_bundle(bundle).defects)
    with pytest.raises(AuditError, match="64 hexadecimal digits"):
        verify_bundle(bundle, "abc")


def test_a_root_that_was_kept_is_held_against_the_commitments(bundle, key):
    sign_bundle(bundle, key, {})
    defects = verify_bundle(bundle, root="00" * 32).defects
    assert defects == ("the commitments are not those whose root was kept",)


def test_a_claim_that_states_less_than_its_ledger_shows(tmp_path, bundle, key):
    card = json.loads((bundle / "claim.json").read_text())
    card["epsilon"] = 0.1
    (bundle / "claim.json").write_text(json.dumps(card))
    sign_bundle(bundle, key, {})
    found = verify_bundle(bundle).defects
    assert any("claim epsilon: the ledger gives" in defect for defect in found)


def test_a_claim_over_another_ledger_shows(tmp_path, bundle, key):
    (tmp_path / "other").mkdir()
    charged(tmp_path / "other", replace(private_plan(), noise_multiplier=0.8))
    (tmp_path / "other" / "ledger.jsonl").replace(bundle / "ledger.jsonl")
    sign_bundle(bundle, key, {})
    found = verify_bundle(bundle).defects
    assert any("doesn't bear the claim out" in defect for defect in found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card.pop("tuning"), "tuning"),
        (lambda card: card.update(more=1), "more"),
        (lambda card: card.update(threat_model=""), "says nothing about threat_model"),
        (lambda card: card.update(version=9), "version"),
        (lambda card: card.update(kind="claim"), "kind"),
    ],
)
def test_an_incomplete_claim_is_refused(sound, change, words):
    card = json.loads((sound / "claim.json").read_text())
    change(card)
    with pytest.raises(ClaimError, match=words):
        decode_claim(json.dumps(card).encode())


def test_the_key_is_its_owner_s_alone(tmp_path, key):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(AuditError, match="can't write"):
        make_auditor_key(key)
    key.chmod(0o644)
    with pytest.raises(TrustError, match="0600"):
        public_key_of(key)
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN PRIVATE KEY-----\nsecret words\n-----END PRIVATE KEY-----\n")
    os.chmod(broken, 0o600)  # noqa: PTH101
    with pytest.raises(AuditError, match="no key that can be read") as caught:
        public_key_of(broken)
    assert "secret words" not in str(caught.value)


def test_a_suffix_whose_chance_is_below_any_float_has_none():
    assert Suffix(planted=True, tokens=3, greedy=0).log_probability is None
