"""Verifying an export: whatever was done to it is seen, and the entry named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.ledgers import (
    UserPlan,
    at_most,
    clock,
    digest,
    exported,
    filled,
    make_plan,
)
from typer.testing import CliRunner

import sordino.privacy
from sordino.cli.main import app
from sordino.core import canonical
from sordino.core.errors import LedgerError, PlanError, PolicyRefusedError
from sordino.privacy import accounting
from sordino.privacy.ledger import (
    Checks,
    KeptHead,
    Ledger,
    export_ledgers,
    read_heads,
    verify_export,
    write_heads,
)
from sordino.privacy.plan import policy_limit, verify_ledger
from sordino.privacy.plan.verification import Replay
from sordino.privacy.policy import Cap, Policy
from sordino.privacy.verify import main


def write(folder, lines):
    path = folder / "changed.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


# --- heads --------------------------------------------------------------------------------------


def test_rollback_is_caught_by_a_kept_head(tmp_path):
    ledger = filled(tmp_path / "ledger.db", 3)
    old = exported(tmp_path, ledger, "old.jsonl")
    ledger.charge(make_plan(), 4, "data")
    new = exported(tmp_path, ledger, "new.jsonl")
    write_heads([ledger.head], tmp_path / "heads")
    heads = read_heads(tmp_path / "heads")
    assert verify_ledger(new, heads=heads).ok
    ledger.charge(make_plan(), 5, "data")
    assert verify_ledger(exported(tmp_path, ledger), heads=heads).ok  # it may go on
    (defect,) = verify_ledger(old, heads=heads).defects
    assert "rolled back" in defect.what
    assert defect.entry == ledger.find("run-1", 4).commit.index
    for cut in range(1, 12):
        lines = new.read_bytes().splitlines()[:-cut]
        if lines:
            assert not verify_ledger(write(tmp_path, lines), heads=heads).ok


def test_an_old_copy_that_went_another_way(tmp_path):
    ledger = filled(tmp_path / "ledger.db", 1)
    saved = {p: p.read_bytes() for p in tmp_path.glob("ledger.db*")}
    ledger.charge(make_plan(), 2, "data")
    head = ledger.head
    for path in tmp_path.glob("ledger.db*"):
        path.write_bytes(saved[path]) if path in saved else path.unlink()
    again = Ledger(tmp_path / "ledger.db", "client-1")  # the device itself can't tell
    for number in (3, 4):
        again.charge(make_plan(), number, "data")
    path = exported(tmp_path, again)
    kept = KeptHead(client=head.client, index=head.index, sha256=head.sha256)
    assert verify_ledger(path).ok
    (defect,) = verify_ledger(path, heads=[kept]).defects
    assert "rewritten" in defect.what
    assert defect.entry == head.index


def test_a_head_without_a_client_is_a_coordinators_receipt(tmp_path):
    ledger = filled(tmp_path / "ledger.db", 0)
    commit = ledger.charge(make_plan(), 1, "data").commit
    path = exported(tmp_path, ledger)
    assert verify_ledger(path, heads=[KeptHead(index=commit.index, sha256=commit.sha256)]).ok
    assert not verify_ledger(path, heads=[KeptHead(index=commit.index, sha256="0" * 64)]).ok


def test_a_client_that_is_left_out_and_a_key_that_was_swapped(tmp_path):
    heads = []
    for name in ("a", "b"):
        heads.append(filled(tmp_path / name / "ledger.db", 1, client=name).head)
    write_heads(heads, tmp_path / "heads")
    export_ledgers([tmp_path / "a" / "ledger.db"], tmp_path / "one.jsonl")
    (defect,) = verify_ledger(tmp_path / "one.jsonl", heads=read_heads(tmp_path / "heads")).defects
    assert (defect.client, "leaves out" in defect.what) == ("b", True)
    foreign = KeptHead(
        client="a", index=heads[0].index, sha256=heads[0].sha256, public_key="ab" * 32
    )
    (defect,) = verify_ledger(tmp_path / "one.jsonl", heads=[foreign]).defects
    assert "another key" in defect.what


@pytest.mark.parametrize("line", ["", "[]", '{"index": 1}', '{"index": true, "sha256": "x"}', "{"])
def test_what_is_no_kept_head(tmp_path, line):
    (tmp_path / "heads").write_text(line + "\n")
    with pytest.raises(LedgerError, match="line 1"):
        read_heads(tmp_path / "heads")


# --- figures, caps, artefacts ---------------------------------------------------------------------


def test_epsilon_is_recomputed_by_key(tmp_path):
    ledger = filled(tmp_path / "ledger.db", 2)
    ledger.charge(make_plan(noise_multiplier=3.0), 3, "data", block="w1")
    ledger.charge(make_plan(), 4, "other")
    verdict = verify_ledger(exported(tmp_path, ledger), delta=1e-6)
    assert verdict.budgets.pop().unit == "user"
    first, second = make_plan().round_event(), make_plan(noise_multiplier=3.0).round_event()
    assert {(b.dataset, b.block): (b.charges, b.epsilon) for b in verdict.budgets} == {
        ("data", "all"): (3, accounting.epsilon_pld([first, first, second], 1e-6)),
        ("data", "w1"): (3, accounting.epsilon_pld([first, first, second], 1e-6)),
        ("other", "all"): (1, accounting.epsilon_pld([first], 1e-6)),
    }
    for delta in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(PlanError, match="delta"):
            verify_ledger(tmp_path / "ledger.jsonl", delta=delta)


def test_the_charge_that_passes_a_cap_is_named(tmp_path):
    ledger = filled(tmp_path / "ledger.db", 5)
    path = exported(tmp_path, ledger)
    event = make_plan().round_event()
    cap = accounting.epsilon_pld([event] * 3, 1e-5)
    (defect,) = verify_ledger(path, max_epsilon=cap).defects
    assert defect.entry == ledger.find("run-1", 4).number
    assert verify_ledger(path, max_epsilon=accounting.epsilon_pld([event] * 5, 1e-5)).ok


def test_a_limit_is_replayed_charge_by_charge(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", "client-1", now=clock)
    for number in range(1, 5):
        policy = "ab" * 32 if number < 4 else "cd" * 32
        ledger.charge(make_plan(), number, "data", limit=at_most(9, policy_sha256=policy))
    path = exported(tmp_path, ledger)

    def verify(**limits):
        return verify_export(path, Checks(accountant=Replay(1e-5), limits=limits)).defects

    assert not verify(**{"ab" * 32: at_most(3)})
    (defect,) = verify(**{"ab" * 32: at_most(2)})
    assert defect.entry == ledger.find("run-1", 3).number
    assert verify(**{"": at_most(1)})


def test_a_policys_caps_are_replayed(tmp_path):
    """A filter holds the lifetime cap on the device; the verifier sees that it did."""
    loose, tight = (
        Policy(caps=(Cap(unit="record", epsilon=epsilon, delta=1e-5),)) for epsilon in (8.0, 6.0)
    )
    ledger = Ledger(tmp_path / "ledger.db", "client-1")
    refused = None
    for number in range(1, 1000):
        plan = make_plan(run_id=f"run-{number}", noise_multiplier=2.0 + number % 3)
        try:
            ledger.charge(plan, 1, "data", limit=policy_limit(loose))
        except PolicyRefusedError as error:
            refused = error
            break
    assert refused.reason == "policy-budget"
    assert len(ledger.standings) > 5
    path = exported(tmp_path, ledger)
    assert verify_ledger(path, policies=[tight, loose], max_epsilon=8.0).ok
    defects = verify_ledger(path, policies=[tight]).defects
    assert all("another policy" in defect.what for defect in defects)
    limits = {loose.sha256: policy_limit(tight)}
    first = verify_export(path, Checks(accountant=Replay(1e-5), limits=limits)).defects[0]
    assert first.entry > 1
    assert "policy-budget" in first.what


def test_both_units_are_reported(tmp_path):
    ledger = filled(tmp_path / "ledger.db", 0)
    for number, data in enumerate("ab", start=1):
        ledger.charge(UserPlan(), number, data)
    budgets = verify_ledger(exported(tmp_path, ledger)).budgets
    event = accounting.UserGaussian(noise_multiplier=2.0, steps=1)
    one = accounting.epsilon_for("record", [event], 1e-5)
    both = accounting.epsilon_for("user", [event, event], 1e-5)
    assert [(b.unit, b.dataset, b.protected, b.epsilon) for b in budgets] == [
        ("record", "a", 0, one),
        ("record", "b", 0, one),
        ("user", "", 2, both),
    ]


def test_an_event_that_nobody_can_account_for_is_a_defect(tmp_path):
    class Odd:
        run_id, rounds, unit, neighbouring = "odd", 3, "record", "add-or-remove-one"
        sha256 = "ab" * 32

        def event_fields(self):
            return {"kind": "wishful"}

    ledger = filled(tmp_path / "ledger.db", 1)
    number = ledger.charge(Odd(), 1, "data").number
    (defect,) = verify_ledger(exported(tmp_path, ledger)).defects
    assert (defect.entry, "wishful" in defect.what) == (number, True)


def test_released_artefacts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", "client-1")
    folder = tmp_path / "updates" / "run"
    folder.mkdir(parents=True)
    numbers, names = [], []
    for number in (1, 2, 3):
        data = f"update {number}".encode()
        charge = ledger.charge(make_plan(), number, "data")
        ledger.release(charge.number, canonical.sha256_hex(data))
        names.append(folder / f"{number}.{canonical.sha256_hex(data)}.update")
        names[-1].write_bytes(data)
        numbers.append(charge.number)
    path = exported(tmp_path, ledger)

    def verify(**more):
        return verify_ledger(path, artefacts=tmp_path / "updates", **more)

    verdict = verify(all_artefacts=True)
    assert (verdict.ok, verdict.artefacts, verdict.absent) == (True, 3, 0)
    (folder / "notes.txt").write_text("not an update")
    (folder / f".{names[0].name}.123.part").write_text("a draft that a crash left")
    names[0].unlink()
    verdict = verify()
    assert (verdict.ok, verdict.artefacts, verdict.absent) == (True, 2, 1)
    (defect,) = verify(all_artefacts=True).defects
    assert (defect.entry, "missing" in defect.what) == (numbers[0], True)
    names[1].write_bytes(b"update X")
    (defect,) = verify().defects
    assert (defect.entry, "not what was released" in defect.what) == (numbers[1], True)
    names[1].write_bytes(b"update 2")
    (folder / "extra.update").write_bytes(b"uncharged")
    (defect,) = verify().defects
    assert "no entry releases run/extra.update" in defect.what or "extra.update" in defect.what


# --- the command, and the laptop ------------------------------------------------------------------


def test_the_command_line(tmp_path):
    filled(tmp_path / "state" / "c1" / "ledger.db", 2)
    run = CliRunner().invoke
    out, heads = tmp_path / "ledger.jsonl", tmp_path / "heads.jsonl"
    done = run(
        app, ["ledger", "export", str(tmp_path / "state"), "--to", str(out), "--head", str(heads)]
    )
    assert done.exit_code == 0, done.output
    shown = run(app, ["ledger", "show", str(tmp_path / "state"), "--entries"])
    assert shown.exit_code == 0
    for word in ("client-1", "2 released", "epsilon <=", "delta 1e-05", "reserve", "PLD"):
        assert word in shown.output
    good = run(app, ["ledger", "verify", str(out), "--head", str(heads)])
    assert (good.exit_code, "nothing is wrong" in good.output) == (0, True)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-1]))
    assert run(app, ["ledger", "verify", str(out)]).exit_code == 0
    cut = run(app, ["ledger", "verify", str(out), "--head", str(heads)])
    assert (cut.exit_code, "rolled back" in cut.output) == (1, True)
    out.write_bytes(b"".join(lines[:3] + lines[4:]))
    bad = run(app, ["ledger", "verify", str(out)])
    assert bad.exit_code == 1
    assert "DEFECT line 4, client client-1, entry 4" in bad.output
    assert "do not believe" in bad.output
    assert run(app, ["ledger", "show", str(out)]).exit_code == 1
    capped = run(app, ["ledger", "verify", str(tmp_path / "state" / "c1" / "ledger.db"),
                       "--max-epsilon", "0.1"])  # fmt: skip
    assert capped.exit_code == 1


def test_the_module_alone(tmp_path, capsys):
    path = exported(tmp_path, filled(tmp_path / "ledger.db", 1))
    assert main([str(path)]) == 0
    assert "VERDICT: nothing is wrong" in capsys.readouterr().out
    assert main([str(path), "--max-epsilon", "0.01"]) == 1
    assert main([str(tmp_path / "absent")]) == 2


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"flwr", "torch", "grpc", "typer", "rich", "transformers",
                                      "peft", "opacus", "gguf", "pyarrow", "tokenizers"}:
            raise ImportError(f"{name} is not on an auditor's laptop")

sys.meta_path.insert(0, Refuse())
from sordino.privacy.verify import main
code = main(sys.argv[1:])
heavy = {"flwr", "torch", "grpc", "typer", "rich"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def test_the_verifier_stands_alone(tmp_path):
    """Only core and privacy on the path, and nothing of the fleet to be imported."""
    ledger = filled(tmp_path / "ledger.db", 2)
    path = exported(tmp_path, ledger)
    write_heads([ledger.head], tmp_path / "heads")
    where = Path(next(iter(sordino.privacy.__path__))).parents[1]
    root = where if (where / "sordino" / "core").is_dir() else where.parent / "core"
    done = subprocess.run(
        check=False,
        args=[sys.executable, "-c", ALONE, str(path), "--head", str(tmp_path / "heads")],
        env={"PYTHONPATH": os.pathsep.join({str(where), str(root)}), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "VERDICT: nothing is wrong with this ledger\n" in done.stdout


def test_digests_are_hex(tmp_path):
    ledger = filled(tmp_path / "ledger.db", 0)
    number = ledger.charge(make_plan(), 1, "data").number
    with pytest.raises(LedgerError, match="artefact"):
        ledger.release(number, "not a hash")
    ledger.release(number, digest(1))
