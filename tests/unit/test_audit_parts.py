"""Parts of an audit by themselves: texts of canaries, attacks on prompts, broken mechanisms."""

import numpy as np
import pytest
from support.rounds import plan

from sordino.client.data.records import Turn
from sordino.client.data.tokens import TokenizerFile
from sordino.client.model.registry import POCKET_FOLDER
from sordino.core.audit_config import KINDS, AuditConfig
from sordino.core.errors import AuditError, ConfigError
from sordino.privacy.audit import PromptLeakage, Stage
from sordino.privacy.noise import seeded_source
from sordino.sim.audit.broken import BrokenMechanism, Faults, NoiselessSource
from sordino.sim.audit.hidden import ATTACKS, TARGETS, draw_setting
from sordino.sim.audit.kept import Kept
from sordino.sim.audit.parts.prompts import attack_all
from sordino.sim.audit.tiers import tier_of
from sordino.sim.audit.wording import Wording, secret_of


@pytest.fixture(scope="module")
def tokenizer():
    return TokenizerFile.load(POCKET_FOLDER)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_a_kind_differ_and_can_be_written(tokenizer, kind):
    wording = Wording(tokenizer, np.random.default_rng(0))
    texts = [wording.draw(kind, 8) for _ in range(50)]
    assert len(set(texts)) == 50
    ids = [tokenizer.tokenizer.encode(text).ids for text in texts]
    assert all(2 < len(row) < 60 for row in ids)


def test_a_secret_reads_back(tokenizer):
    wording = Wording(tokenizer, np.random.default_rng(1))
    for _ in range(20):
        secret = wording.secret()
        assert secret_of(secret.text()) == secret
        assert secret.text(7).endswith(" 007.")
    with pytest.raises(AuditError, match="a code of three digits"):
        secret_of("no code at all")


class Echo:
    """Says everything that it was told, word for word: what a leak looks like at its worst."""

    def __init__(self):
        self.heard = []

    def answer(self, talks):
        self.heard += [list(talk) for talk in talks]
        return [" ".join(turn.content for turn in talk[:2]) for talk in talks]


class Mute(Echo):
    """Answers, and gives nothing away."""

    def answer(self, talks):
        return ["I can't help with that, sorry." for _ in talks]


@pytest.mark.parametrize("what", sorted(TARGETS))
def test_the_harness_finds_all_of_an_echo_and_nothing_of_the_silent(what):
    rng = np.random.default_rng(2)
    settings = [draw_setting(what, rng) for _ in range(6)]
    unseen = [draw_setting(what, rng) for _ in range(6)]
    stages = tuple(
        Stage(name=name, attempts=attack_all(talker, settings, unseen, TARGETS[what]))
        for name, talker in (("base", Echo()), ("private", Mute()))
    )
    figures = PromptLeakage(target=what, stages=stages, criterion="secret").figures()
    leaked, silent = (stage["best"]["secret"] for stage in figures["stages"])
    assert leaked["leaked"]["estimate"] == 1.0
    assert leaked["control"]["estimate"] == 0.0  # of texts that it never saw: none
    assert silent["leaked"]["estimate"] == 0.0
    assert figures["power"]


def test_a_later_turn_comes_after_the_models_own_answer():
    talker = Echo()
    setting = draw_setting("system prompt", np.random.default_rng(3))
    several = [attack for attack in ATTACKS if len(attack.says) > 1]
    attack_all(talker, [setting], [setting], several[:1])
    last = talker.heard[-1]
    assert [turn.role for turn in last] == ["system", "user", "assistant", "user"]
    assert last[0] == Turn("system", setting.hidden)
    assert last[-1].content == several[0].says[-1]


def test_there_are_enough_attacks_of_enough_families():
    assert len(ATTACKS) >= 15
    assert len({attack.family for attack in ATTACKS}) >= 7


def test_a_secret_stands_in_its_own_setting_alone():
    rng = np.random.default_rng(4)
    for what in TARGETS:
        settings = [draw_setting(what, rng) for _ in range(10)]
        for one in settings:
            assert one.secret in one.hidden
            assert any(one.hidden in turn.content for turn in one.turns)
            assert sum(one.secret in other.hidden for other in settings) == 1


def test_what_is_finished_is_kept_by_what_it_was_made_from(tmp_path):
    kept, made = Kept(tmp_path), []

    def make():
        made.append(1)
        return [len(made)]

    assert kept.part("a", {"x": 1}, make) == [1]
    assert kept.part("a", {"x": 1}, make) == [1]
    assert kept.part("a", {"x": 2}, make) == [2]


def test_faults_are_what_they_are_called():
    given, source = plan(sampling_rate=0.5, clip_norm=0.05), seeded_source(0)
    norms = np.array([0.5, 1.0])
    real = BrokenMechanism(given, source, Faults())
    assert (real.clip_factors(norms) < 1).all()
    assert 0 < len(real.sample(1000)) < 1000
    assert (BrokenMechanism(given, source, Faults(clips=False)).clip_factors(norms) == 1).all()
    assert len(BrokenMechanism(given, source, Faults(samples=False)).sample(1000)) == 1000
    size = 4000
    loud = BrokenMechanism(given, source, Faults()).release(np.zeros(size)).std()
    quiet = BrokenMechanism(given, source, Faults(noise=0.1)).release(np.zeros(size)).std()
    assert 7 < loud / quiet < 13
    assert not BrokenMechanism(given, NoiselessSource(), Faults()).release(np.zeros(size)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"canaries": -1}, r"audit\.canaries in 0\.\.16384, got -1"),
        ({"kinds": ("odd",)}, r"audit\.kinds one or more of random"),
        ({"words": 2}, r"audit\.words in 4\.\.64"),
        ({"repetitions": ()}, r"audit\.repetitions"),
        ({"guesses": (0.0,)}, r"audit\.guesses"),
        ({"guesses": (0.1, 0.2, 0.3, 0.4)}, r"audit\.guesses"),
    ],
)
def test_an_audit_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        AuditConfig(**change)


def test_a_tier_that_is_not_there_is_named():
    with pytest.raises(AuditError, match="one of demo, quick, full, got 'deep'"):
        tier_of("deep")
