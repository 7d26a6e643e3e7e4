"""report.json is strict, report.html says all of it and nothing else, the card carries the rest."""

import dataclasses
import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from sordino.core.errors import ReportError
from sordino.core.stats import Interval
from sordino.privacy.noise import SYSTEM_LABEL
from sordino.server import report as package
from sordino.server.report import (
    PRIVATE_TO_A_COORDINATOR,
    BaseCard,
    Energy,
    Epsilon,
    Leakage,
    OtherUnit,
    SecondOpinion,
    Utility,
    from_json,
    measured_gain,
    model_card,
    render_html,
    to_json,
    write_card,
    write_report,
)
from sordino.server.report.audit_charts import audit_charts
from sordino.server.report.charts import all_charts
from sordino.server.report.codec import assert_paths_exist

TEXT = (Path(__file__).parent.parent / "data" / "report.json").read_text(encoding="utf-8")
BASE = BaseCard(name="HuggingFaceTB/SmolLM2-135M-Instruct", license="apache-2.0")


@pytest.fixture
def report():
    return from_json(TEXT)


def replaced(report, path, value):
    """A copy of `report` with the field at a dotted path set to `value`."""
    head, _, rest = path.partition(".")
    if rest:
        value = replaced(getattr(report, head), rest, value)
    return dataclasses.replace(report, **{head: value})


def sparse(report):
    """What a fleet may know: no simulation's figures, no baselines, no energy."""
    bare = {"records": None, "clip_fraction": None, "loss_before": None, "loss_after": None}
    return dataclasses.replace(
        report,
        noise=dataclasses.replace(report.noise, clip_fraction=None, update_snr=None),
        utility=Utility(private=None, no_privacy=None, no_federation=None),
        clients=tuple(dataclasses.replace(c, **bare) for c in report.clients),
        rounds=tuple(dataclasses.replace(r, loss=None, peak_rss_mb=None) for r in report.rounds),
        simulation_only=(),
    )


def by_user(report):
    """The same run under central trust."""
    other = OtherUnit(
        unit="record", status="bounded", reason="Covered, and 2C.", epsilon=19.12, delta=1e-5
    )
    guarantee = dataclasses.replace(
        report.guarantee, trust="central", unit="user", other=other, neighbouring="one user"
    )
    lost = dataclasses.replace(report.rounds[1], released=False, updates=None)
    return dataclasses.replace(
        report,
        guarantee=guarantee,
        rounds=(report.rounds[0], lost, *report.rounds[2:]),
        clients=tuple(dataclasses.replace(c, clip_fraction=None) for c in report.clients),
        metrics=(),  # sold per record, under local trust alone
        simulation_only=(*report.simulation_only, *PRIVATE_TO_A_COORDINATOR),
    )


# report.json


def test_round_trip_is_exact(report):
    assert to_json(report) == TEXT
    assert from_json(to_json(sparse(report))) == sparse(report)
    assert from_json(to_json(by_user(report))) == by_user(report)


def test_order_does_not_depend_on_how_versions_were_gathered(report):
    backwards = dict(reversed(report.run.versions.items()))
    assert to_json(replaced(report, "run.versions", backwards)) == TEXT


def test_exported_names():
    assert package.__all__ == [
        "KNOWN_TO_A_SIMULATION", "PRIVATE_TO_A_COORDINATOR", "SCHEMA_VERSION", "BaseCard",
        "ClientFigures", "Cost", "Energy", "Epsilon", "Guarantee", "Leakage", "MetricFigures",
        "Noise", "OtherUnit", "RoundFigures", "Run", "RunModel", "RunReport", "SecondOpinion",
        "Utility", "UtilityFigures",
        "claim_of_run", "from_json", "measured_gain", "model_card", "render_html", "render_page",
        "to_json", "write_card", "write_report",
    ]  # fmt: skip
    assert all(hasattr(package, name) for name in package.__all__)


def walk(tree, path=()):
    """Every object of a JSON tree, with its path."""
    if isinstance(tree, dict):
        yield path, tree
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in children:
        if isinstance(child, dict | list):
            yield from walk(child, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


OBJECTS = [path for path, _ in walk(json.loads(TEXT)) if path != ("run", "versions")]


@pytest.mark.parametrize("path", OBJECTS, ids=str)
def test_unknown_and_missing_keys_are_refused_everywhere(path):
    tree = json.loads(TEXT)
    at(tree, path)["surprise"] = 1
    with pytest.raises(ReportError, match=r"unknown key .*surprise"):
        from_json(json.dumps(tree))
    for key in at(json.loads(TEXT), path):
        tree = json.loads(TEXT)
        del at(tree, path)[key]
        with pytest.raises(ReportError, match=f"{key} is missing"):
            from_json(json.dumps(tree))


def test_a_near_miss_is_named():
    with pytest.raises(ReportError, match="did you mean clip_norm"):
        from_json(TEXT.replace('"clip_norm"', '"clip_nrom"'))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_json_that_is_not_finite_is_refused(constant):
    tampered = re.sub(r'"wall_s": [\d.]+', f'"wall_s": {constant}', TEXT, count=1)
    with pytest.raises(ReportError, match="finite"):
        from_json(tampered)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e400])
@pytest.mark.parametrize(
    "path",
    [
        "guarantee.epsilon.pld",
        "guarantee.delta",
        "noise.noise_multiplier",
        "noise.update_snr",
        "utility.private.loss_after",
        "cost.tokens_per_s",
    ],
)
def test_a_report_that_is_not_finite_cannot_be_made(report, path, bad):
    with pytest.raises(ReportError, match=path.rsplit(".", 1)[-1]):
        replaced(report, path, bad)


def test_an_interval_that_is_not_finite_cannot_be_reported(report):
    broken = dataclasses.replace(report.utility.private.interval, low=math.nan)
    with pytest.raises(ReportError, match="low"):
        replaced(report, "utility.private.interval", broken)


@pytest.mark.parametrize(
    ("path", "bad", "words"),
    [
        ("noise.clip_fraction", 1.2, "in \\[0, 1\\]"),
        ("noise.sampling_rate", -0.1, "in \\[0, 1\\]"),
        ("guarantee.epsilon.pld", -1.0, ">= 0"),
        ("guarantee.delta", 0.0, "> 0 beside"),
        ("guarantee.delta", None, "> 0 beside"),
        ("cost.bytes_up", -1, ">= 0"),
        ("run.clients", 0, ">= 1"),
        ("run.model.sha256", "abc", "64 lowercase"),
        ("run.model.name", " ", "not empty"),
        ("utility.private.tokens", 0, ">= 1"),
        ("schema_version", 4, "this release"),
    ],
)
def test_impossible_figures_are_refused(report, path, bad, words):
    with pytest.raises(ReportError, match=words):
        replaced(report, path, bad)


def test_sections_that_contradict_themselves_are_refused(report):
    with pytest.raises(ReportError, match="when bounded"):
        OtherUnit(unit="user", status="bounded", reason="group privacy")
    with pytest.raises(ReportError, match="when bounded"):
        OtherUnit(unit="user", status="not bounded", reason="many", epsilon=3.0, delta=1e-5)
    with pytest.raises(ReportError, match=r"other\.unit other than record"):
        replaced(report, "guarantee.other.unit", "record")
    with pytest.raises(ReportError, match="unavailable"):
        Energy(joules=None, source="measured")
    with pytest.raises(ReportError, match="in order"):
        dataclasses.replace(report, rounds=report.rounds[::-1])
    with pytest.raises(ReportError, match="each once"):
        dataclasses.replace(report, clients=report.clients + report.clients[:1])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"seed": 0', '"seed": "0"', "a whole number"),
        ('"seed": 0', '"seed": true', "a whole number"),
        ('"wall_s": 41.8', '"wall_s": true', "a number"),
        ('"data": "shakespeare"', '"data": null', "a string"),
        ('"trust": "local"', '"trust": "total"', "one of local"),
        ('"status": "audited"', '"status": "fine"', "one of not audited"),
        ('"seed": 0', '"seed": 0, "seed": 1', "each once"),
        ('"schema_version": 3', '"schema_version": 3,,', "not valid JSON"),
        ('"$.utility"', '"$.nothing"', "name a field"),
    ],
)
def test_wrong_json_is_refused(old, new, words):
    assert old in TEXT
    with pytest.raises(ReportError, match=words):
        from_json(TEXT.replace(old, new, 1))


@pytest.mark.parametrize(
    "tree", ["[]", "1", '"x"', TEXT.replace('"rounds": [', '"rounds": [1, ')], ids=range(4)
)
def test_wrong_shapes_are_refused(tree):
    with pytest.raises(ReportError, match="an object"):
        from_json(tree)


def test_numpy_scalars_do_not_slip_in(report):
    with pytest.raises(ReportError, match="a whole number"):
        to_json(replaced(report, "cost.bytes_up", np.int64(3)))


@pytest.mark.parametrize("path", ["utility", "$.utility[*]", "$.rounds.loss", "$.run.id.x", "$.x"])
def test_a_mark_must_name_a_field(report, path):
    with pytest.raises(ReportError, match="name a field"):
        assert_paths_exist((path,))
    with pytest.raises(ReportError, match="name a field"):
        to_json(dataclasses.replace(report, simulation_only=(path,)))


def test_a_mark_covers_what_lies_below_it(report):
    assert report.only_in_simulation("$.utility.private.loss_after")
    assert report.only_in_simulation("$.clients[*].loss_after")
    assert not report.only_in_simulation("$.clients[*].epsilon")
    assert not report.only_in_simulation("$.noise.clip_norm")
    assert not report.only_in_simulation("$.utilityx")


def leaves(tree, path="$"):
    """The path of every figure; the three runs under utility count as one."""
    if isinstance(tree, dict) and path != "$.run.versions":
        for key, child in tree.items():
            kind = "*" if path == "$.utility" else key
            yield from leaves(child, f"{path}.{kind}")
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        yield from leaves(tree[0], f"{path}[*]")
    else:
        yield path


def test_every_figure_is_documented():
    page = Path(__file__).parents[2] / "docs" / "report-json.md"
    documented = set(re.findall(r"^\| `(\$[^`]+)`", page.read_text(encoding="utf-8"), re.MULTILINE))
    runs = {f"$.utility.{key}" for key in json.loads(TEXT)["utility"]}
    assert documented == set(leaves(json.loads(TEXT))) | runs


def test_measured_gain_is_of_sums_over_tokens():
    figures = measured_gain([6.0, 30.0], [4.0, 24.0], [2, 10], rng=np.random.default_rng(0))
    assert (figures.loss_before, figures.loss_after, figures.tokens) == (3.0, 28 / 12, 12)
    assert figures.interval.estimate == pytest.approx(8 / 12)
    assert figures.perplexity_after == pytest.approx(math.exp(28 / 12))


# writing


def test_both_files_are_written_whole(report, tmp_path):
    paths = write_report(report, tmp_path / "runs" / "one")
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert from_json(paths[0].read_text(encoding="utf-8")) == report
    assert paths[1].read_text(encoding="utf-8") == render_html(report)
    assert sorted(path.name for path in (tmp_path / "runs" / "one").iterdir()) == [
        "report.html",
        "report.json",
    ]


def test_a_failed_write_leaves_the_old_report(report, tmp_path, monkeypatch):
    (path, _) = write_report(report, tmp_path)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sordino.core.durable.os.fsync", full_disk)
    with pytest.raises(ReportError, match="No space left"):
        write_report(replaced(report, "run.id", "other"), tmp_path)
    assert path.read_text(encoding="utf-8") == TEXT
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_is_a_clear_error(report, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ReportError, match="can't write"):
        write_report(report, tmp_path / "file" / "inside")


# report.html


class Reader(HTMLParser):
    """Collects what a browser would act on, and fails on tags that don't nest."""

    VOID = frozenset({"meta", "br", "hr", "link", "img", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert len(reader.ids) == len(set(reader.ids))
    return reader


def plain(page):
    """The text of a page, without its tags."""
    body = page[page.index("<body>") :]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.mark.parametrize("shape", [lambda r: r, sparse], ids=["simulation", "fleet"])
def test_page_holds_no_script_and_refers_to_nothing(report, shape):
    page = render_html(shape(report))
    reader = read(page)
    lowered = page.lower()
    assert "<script" not in lowered
    assert "http://" not in lowered
    assert "https://" not in lowered
    assert "url(" not in lowered
    assert "@import" not in lowered
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "a"}
    names = {name for name, _ in reader.attributes}
    assert not {n for n in names if n.startswith("on")}
    assert not names & {"src", "href", "srcset", "xmlns", "xlink:href", "style", "action"}
    assert "default-src 'none'" in page


def test_names_are_data(report):
    assert any(client.client == '<b>&"' for client in report.clients)
    page = render_html(report)
    assert "<td>&lt;b&gt;&amp;&#34;</td>" in page
    assert '<b>&"' not in page


@pytest.mark.parametrize(
    "path",
    ["run.id", "run.data", "run.model.name", "noise.source", "guarantee.accountant"],
)
def test_hostile_text_stays_text(report, path):
    hostile = '"><script>alert(1)</script><img src=x onerror=y>{{ 7*7 }}'
    page = render_html(replaced(report, path, hostile))
    assert "<script" not in page
    assert "<img" not in page
    assert "{{ 7*7 }}" in page
    read(page)


def test_headline_states_every_qualifier(report):
    record = report.guarantee
    page = render_html(report)
    statement = plain("<body>" + page.split('<p class="statement">')[1].split("</p>")[0])
    assert statement.startswith("Each record is protected with ε ≤ 8.00 at δ = 10⁻⁵ ,")
    for words in (
        "unit record",
        record.neighbouring,
        record.sampling,
        record.accountant,
        record.composition,
        "trust model local",
        "the coordinator included",
        "unit user , ε is not bounded",
    ):
        assert words in statement


def test_under_central_trust_the_headline_is_the_users(report):
    page = render_html(by_user(report))
    read(page)
    statement = plain("<body>" + page.split('<p class="statement">')[1].split("</p>")[0])
    assert statement.startswith("Each user, with all of their records, is protected with ε ≤ 8.00")
    for words in (
        "unit user",
        "neighbouring datasets by one user",
        report.guarantee.sampling,
        report.guarantee.accountant,
        report.guarantee.composition,
        "trust model central",
        "against everyone but the coordinator",
        "unit record , ε is ≤ 19.12 at δ = 10⁻⁵",
    ):
        assert words in statement
    text = plain(page)
    assert "Unit: user ε ≤ 8.00" in text
    assert "Unit: record ε ≤ 19.12 at δ = 10⁻⁵ Covered, and 2C." in text
    for words in ("Updates clipped", "one released sum", "Noised sums, one a round"):
        assert words in text
    for words in ("Each record is protected", "Records clipped", "one step of a client"):
        assert words not in text
    assert "each client alone, without noise, as nothing leaves it" in text
    card = model_card(by_user(report), BASE)
    assert "**ε ≤ 8.00 at δ = 10⁻⁵ for each user.** One record of a user who takes part:" in card
    assert "the clipped updates, which the coordinator sees" in card


def test_who_took_part_is_the_coordinators_own(report):
    charts = all_charts(by_user(report))
    assert all(charts[key].simulation_only for key in ("updates", "bytes", "time"))
    assert not any(all_charts(report)[key].simulation_only for key in ("updates", "bytes", "time"))
    assert "who they are, ε spent, records" in plain(render_html(by_user(report)))


def test_a_round_that_was_charged_and_lost_is_said(report):
    assert "Round 2: charged, and nothing released." in plain(render_html(by_user(report)))
    assert "nothing released" not in render_html(report)


def test_epsilon_is_never_rounded_down(report):
    page = render_html(replaced(report, "guarantee.epsilon.pld", 7.9901))
    assert "ε ≤ 8.00" in plain(page)
    assert "7.99<" not in page.split('<section aria-labelledby="h-guarantee">')[0]


def test_both_units_stand_side_by_side(report):
    text = plain(render_html(report))
    assert "Unit: record ε ≤ 8.00" in text
    assert "Unit: user Not bounded A user owns up to 1204 records" in text
    bounded = OtherUnit(
        unit="user", status="bounded", reason="By groups of 2.", epsilon=19.9, delta=1e-5
    )
    text = plain(render_html(replaced(report, "guarantee.other", bounded)))
    assert "Unit: user ε ≤ 19.90 at δ = 10⁻⁵ By groups of 2." in text


def test_noise_that_is_not_hardened_is_a_warning(report):
    page = render_html(report)
    assert '<p class="notice caution"' in page
    assert "Noise source: floating point, not hardened." in page


def test_seeded_noise_claims_nothing(report):
    page = render_html(replaced(report, "noise.source", "seeded: not private"))
    assert '<p class="notice danger"' in page
    assert "This run gives no differential privacy." in page
    assert "is protected with" not in page
    assert "Not protected" in page


def test_a_run_without_privacy_claims_nothing(report):
    claim = dataclasses.replace(report.guarantee, epsilon=Epsilon(pld=None, rdp=None), delta=None)
    bare = replaced(report, "guarantee", claim)
    bare = replaced(replaced(bare, "guarantee.trust", "none"), "noise.source", "none")
    bare = replaced(replaced(bare, "noise.noise_multiplier", None), "noise.clip_norm", None)
    bare = replaced(bare, "guarantee.second_opinion", SecondOpinion())
    bare = dataclasses.replace(
        bare,
        rounds=tuple(dataclasses.replace(r, epsilon=None) for r in bare.rounds),
        clients=tuple(dataclasses.replace(c, epsilon=None) for c in bare.clients),
    )
    page = render_html(from_json(to_json(bare)))
    read(page)
    assert "This run gives no differential privacy." in page
    assert "epsilon" not in all_charts(bare)
    alone = Utility(private=None, no_privacy=bare.utility.no_privacy, no_federation=None)
    bare = replaced(bare, "utility", alone)
    assert "Held-out loss fell from 3.413 to 3.254" in plain(render_html(bare))
    assert "| this adapter | 3.254 |" in model_card(bare, BASE)
    assert "| without privacy |" not in model_card(bare, BASE)
    assert "is protected with" not in page


def test_the_system_source_is_shown_calmly(report):
    page = render_html(replaced(report, "noise.source", SYSTEM_LABEL))
    assert f"Noise source: {SYSTEM_LABEL}." in page
    assert '<p class="notice settled"' in page
    assert '<p class="notice caution"' not in page
    assert '<p class="notice danger"' not in page


def test_the_absent_audit_is_said_plainly(report):
    bare = replaced(report, "leakage", Leakage())
    assert "Not audited." in plain(render_html(bare))
    assert "not audited" in model_card(bare, BASE)


def test_an_audit_stands_beside_the_guarantee(report):
    page = plain(render_html(report))
    assert "Audited ε ≥ 0.20 (coordinator; at most 2.38 could have been shown)" in page
    assert "Planted codes known above chance: without privacy 12×." in page
    assert "ALARM" not in page
    charts = all_charts(report) | audit_charts(report)
    keys = {"audit-bounds", "audit-roc", "audit-exposure", "audit-system-prompt"}
    assert keys <= set(charts)
    for key in keys:
        assert charts[key].svg.count("<title") == 1
        assert all(len(row) == len(charts[key].columns) for row in charts[key].rows)


def test_an_alarm_is_loud(report):
    page = plain(render_html(replaced(report, "leakage.alarm", True)))
    assert "Alarm: the audit contradicts the claim." in page
    assert "ALARM" in model_card(replaced(report, "leakage.alarm", True), BASE)


def test_an_audit_without_canaries_says_why_there_is_no_bound(report):
    bare = replaced(report, "leakage.bounds", ())
    bare = replaced(bare, "leakage.none_planted", "none: a run carries what [audit] asks for")
    page = plain(render_html(bare))
    assert "No lower bound on ε: the run carried no canaries" in page
    assert "Canaries: none: a run carries what [audit] asks for." in page


def test_simulation_only_figures_are_marked(report):
    page = render_html(report)
    assert page.count('class="sim"') >= 5
    assert "records, clipped, loss before, loss after" in plain(page)
    assert 'class="sim"' not in render_html(sparse(report))


def test_a_gain_that_is_none_is_not_called_one(report):
    worse = dataclasses.replace(
        report.utility.private,
        loss_after=3.5,
        interval=Interval(
            estimate=-0.0873, low=-0.11, high=0.02, method="m", level=0.95, resamples=10
        ),
    )
    text = plain(render_html(replaced(report, "utility.private", worse)))
    assert "did not fall" in text
    assert "does not exclude zero" in text


def test_every_number_in_a_chart_stands_in_its_table(report):
    charts = all_charts(report)
    assert set(charts) == {
        "utility", "epsilon", "noise", "loss", "bytes", "updates", "time", "memory"
    }  # fmt: skip
    page = render_html(report)
    number = re.compile(r"[+\u2212]?\d[\d.\u202f]*")
    for chart in charts.values():
        drawn = re.findall(r'<text [^>]*class="value[^"]*"[^>]*>([^<]*)</text>', chart.svg)
        written = set(number.findall(" ".join(cell for row in chart.rows for cell in row)))
        shown = {figure for label in drawn for figure in number.findall(unescape(label))}
        assert shown, chart.key
        assert shown <= written, chart.key
        assert chart.svg in page
        for row in chart.rows:
            assert len(row) == len(chart.columns)
            for cell in row:
                assert f"<td>{cell}</td>" in page


def test_charts_are_named_for_those_who_do_not_see_them(report):
    for chart in all_charts(report).values():
        assert 'role="img"' in chart.svg
        names = re.search(r'aria-labelledby="([^"]+)"', chart.svg)[1].split()
        assert f'<title id="{names[0]}">{chart.title}</title>' in chart.svg
        assert re.search(f'<desc id="{names[1]}">[^<]+</desc>', chart.svg)


@pytest.mark.parametrize("rounds", [1, 2, 9, 200])
def test_charts_keep_inside_their_frame(report, rounds):
    many = tuple(
        dataclasses.replace(report.rounds[0], round=i + 1, epsilon=0.1 * i, wall_s=0.0, bytes_up=0)
        for i in range(rounds)
    )
    for chart in all_charts(dataclasses.replace(report, rounds=many)).values():
        assert "nan" not in chart.svg
        assert "inf" not in chart.svg.replace("information", "")
        left, top, width, height = map(float, re.search(r'viewBox="([^"]+)"', chart.svg)[1].split())
        for name, value in re.findall(r' (c?[xy][12]?)="(-?[\d.]+)"', chart.svg):
            low, extent = (left, width) if "x" in name else (top, height)
            assert low <= float(value) <= low + extent, (chart.key, name, value)


def test_many_clients_fold_away(report):
    one = report.clients[0]
    many = tuple(dataclasses.replace(one, client=f"client {i}") for i in range(60))
    page = render_html(dataclasses.replace(report, clients=many))
    read(page)
    assert "All 60 clients" in page


def luminance(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "paper"])
def test_colours_have_contrast(mode):
    """WCAG 2.2: 4.5 for text, 3 for what a drawing needs."""
    folder = resources.files("sordino.server.report") / "templates"
    css = (folder / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root {(.*?)}", css, re.DOTALL)
    roots = [dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in blocks]
    assert len(roots) == 3
    colours = roots[mode]
    for text in ("ink", "muted", "accent"):
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
        assert contrast(colours[text], colours["panel"]) >= 4.5, text
    for kind in ("caution", "danger"):
        assert contrast(colours[kind], colours[f"{kind}-paper"]) >= 4.5, kind
    for drawn in ("accent", "side", "target"):
        assert contrast(colours[drawn], colours["paper"]) >= 3, drawn


# The model card


def front_matter(card):
    _, matter, rest = card.split("---\n", 2)
    lines = [line for line in matter.splitlines() if ": " in line]
    return dict(line.split(": ", 1) for line in lines), rest


def test_card_has_front_matter_and_a_privacy_section(report):
    matter, rest = front_matter(model_card(report, BASE))
    assert json.loads(matter["base_model"]) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert matter["library_name"] == "peft"
    assert json.loads(matter["license"]) == "apache-2.0"
    record = report.guarantee
    for words in (
        "**ε ≤ 8.00 at δ = 10⁻⁵ for each record.**",
        record.neighbouring,
        record.sampling,
        record.accountant,
        record.composition,
        "local: each upload",
        "floating point, not hardened",
        "audited ε",
        "not bounded",
        "Not covered by this ε",
        "PeftModel.from_pretrained(model,",
    ):
        assert words in rest


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("/home/someone/models/my-model.gguf", "my-model"),
        ("./models/tiny", "tiny"),
        ("C:\\models\\tiny.gguf", "tiny"),
        ("~/tiny/", "tiny"),
        ("pocket", "pocket"),
        ("owner/name", "owner/name"),
    ],
)
def test_card_names_the_base_and_never_a_path(report, given, public):
    card = model_card(report, BaseCard(name=given, gguf_file="tiny.gguf"))
    assert json.loads(front_matter(card)[0]["base_model"]) == public
    assert "/home/" not in card
    assert 'gguf_file="tiny.gguf"' in card


def test_card_without_a_known_license_says_so(report):
    card = model_card(report, BaseCard(name="tiny"))
    assert json.loads(front_matter(card)[0]["license"]) == "other"
    assert "fill in both before you publish" in card


def test_card_hides_the_path_of_the_data_and_escapes(report):
    dirty = replaced(report, "run.data", "/home/someone/private|<b>.jsonl")
    card = model_card(replaced(dirty, "noise.source", "a|b <script>"), BASE)
    assert "/home/" not in card
    assert "private\\|\\<b\\>.jsonl" in card
    assert "<script>" not in card.replace("\\<script\\>", "")


def test_card_of_a_seeded_run_claims_nothing(report):
    card = model_card(replaced(report, "noise.source", "seeded: not private"), BASE)
    assert "carries no differential privacy" in card
    assert "for each record.**" not in card


def test_card_is_written_beside_the_adapter(report, tmp_path):
    path = write_card(report, BASE, tmp_path / "adapter")
    assert path == tmp_path / "adapter" / "README.md"
    assert path.read_text(encoding="utf-8") == model_card(report, BASE)
