"""The claim's section of the page: its statements, and δ at every ε as a drawing and a table."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from support.ledgers import claimed, make_plan

from sordino.client.opinion import opacus_epsilons
from sordino.privacy.accounting import delta_at, gaussian_delta
from sordino.server.report import SecondOpinion, from_json, render_html
from sordino.server.report.curve_chart import curve_chart
from sordino.server.report.opinion import second_opinion

REPORT = Path(__file__).parent.parent / "data" / "report.json"


@pytest.fixture(scope="module")
def report():
    return from_json(REPORT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def claim(tmp_path_factory):
    return claimed(tmp_path_factory.mktemp("claim"))


def test_a_claim_has_its_own_section_and_its_text_is_data(report, claim):
    page = render_html(report, dataclasses.replace(claim, tuning="a <b> & c"))
    assert 'id="h-claim"' in page
    assert "a &lt;b&gt; &amp; c" in page
    assert 'id="curve-title"' in page
    bare = render_html(report)
    assert "h-claim" not in bare
    assert "curve-title" not in bare


def test_every_number_of_the_table_is_an_upper_bound(claim):
    chart = curve_chart(claim)
    assert chart.columns == ("ε", "δ, By PLD", f"δ, Gaussian, μ = {claim.mu:g}")
    epsilons, ours, gaussian = np.array([list(map(float, row)) for row in chart.rows]).T
    events = [make_plan().round_event()] * 3
    exact = np.array(delta_at(events, list(epsilons)))
    assert (ours >= exact).all()
    assert ours == pytest.approx(exact, rel=0.03)
    assert (gaussian >= ours * (1 - 0.01)).all()
    assert gaussian == pytest.approx(gaussian_delta(claim.mu, epsilons), rel=0.03)
    assert (ours >= claim.mu_smallest_delta).all()


def test_the_claims_own_point_lies_on_its_line(claim):
    chart = curve_chart(claim)
    (x, y) = map(float, re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart.svg).groups())
    main = re.search(r'<path d="M([^"]+)" class="line main"', chart.svg)[1]
    places = np.array([list(map(float, place.split())) for place in main.split(" L")])
    assert np.interp(x, places[:, 0], places[:, 1]) == pytest.approx(y, abs=0.6)
    assert places[:, 1] == pytest.approx(np.sort(places[:, 1]))  # δ falls as ε grows
    assert f"ε ≤ {claim.epsilon:.2f}"[:-1] in chart.svg


def test_without_a_dominating_gaussian_there_is_one_line(claim):
    chart = curve_chart(dataclasses.replace(claim, mu=None))
    assert len(chart.columns) == 2
    assert chart.svg.count("<path") == 1
    assert curve_chart(dataclasses.replace(claim, delta_curve=())) is None


def with_opinion(report, prv, rdp):
    opinion = SecondOpinion(opacus_prv=prv, opacus_rdp=rdp)
    return dataclasses.replace(
        report, guarantee=dataclasses.replace(report.guarantee, second_opinion=opinion)
    )


def test_the_report_says_whether_opacus_agrees(report):
    noise, delta = report.noise, report.guarantee.delta
    prv, rdp = opacus_epsilons([(noise.noise_multiplier, noise.sampling_rate, noise.steps)], delta)
    assert "Opacus agrees" in render_html(with_opinion(report, prv, rdp))
    assert "Opacus disagrees: its PRV" in render_html(with_opinion(report, prv * 0.98, rdp))
    assert "Opacus disagrees: its RDP" in render_html(with_opinion(report, prv, rdp - 0.01))
    assert second_opinion(with_opinion(report, None, None)) == ""
