"""What a sweep's page draws: curves over ε, levels of the baselines, and the table beside them."""

import re
from dataclasses import replace

import pytest
from support.sweeps import REPORT, swept

from sordino.server.report import from_json
from sordino.sim.partitions import Holdings
from sordino.sim.sweeps import charts
from sordino.sim.sweeps.holdings import holdings_charts
from sordino.sim.sweeps.outcome import over_seeds
from sordino.sim.sweeps.page import View, render
from sordino.sim.sweeps.plot import Curve, Level, Point, plot
from sordino.sim.sweeps.table import rows, to_csv


def test_a_curve_a_setting_and_a_level_a_baseline(tmp_path):
    result = swept(tmp_path)
    (chart,) = charts.utility_charts(result)
    assert [row[:2] for row in chart.rows if row[1]] == [
        (f"lora.rank = {rank}", f"{epsilon}.00") for rank in (4, 8) for epsilon in (1, 2, 4, 8)
    ]
    first = next(row for row in chart.rows if row[:2] == ("lora.rank = 4", "1.00"))
    assert first[2:] == ("+0.127", "+0.119 to +0.135", "3")  # 0.124, 0.127, 0.130
    levels = [row[0] for row in chart.rows if not row[1]]
    assert levels == [
        f"{name} (lora.rank = {rank})"
        for rank in (4, 8)
        for name in ("Without privacy", "Each client alone, without noise")
    ]
    assert chart.svg.count('class="spot') == 8
    assert chart.simulation_only


def test_one_baseline_for_all_is_drawn_once(tmp_path):
    (chart,) = charts.utility_charts(swept(tmp_path, ranks=(4,)))
    assert [row[0] for row in chart.rows if not row[1]] == [
        "Without privacy",
        "Each client alone, without noise",
    ]
    assert {row[0] for row in chart.rows if row[1]} == {"lora.rank = 4"}


def test_many_curves_go_to_several_drawings(tmp_path):
    drawn = charts.utility_charts(swept(tmp_path, ranks=(1, 2, 3, 4, 5, 6)))
    assert [chart.title for chart in drawn] == [
        "Utility against ε, 1 of 2",
        "Utility against ε, 2 of 2",
    ]


def test_noise_is_drawn_in_its_own_order_and_traffic_as_a_cloud(tmp_path):
    result = swept(tmp_path, ranks=(4,))
    (noise,), (traffic,) = charts.noise_charts(result), charts.traffic_charts(result)
    assert [row[1] for row in noise.rows if row[1]] == ["1.5", "2", "3", "5"]
    assert 'class="curve c1"></path>' in noise.svg
    assert "<path" not in traffic.svg


def test_one_seed_has_no_interval(tmp_path):
    (chart,) = charts.utility_charts(swept(tmp_path, ranks=(4,), seeds=(0,)))
    assert {row[3] for row in chart.rows} == {"one seed"}
    assert "reach" not in chart.svg


def test_an_interval_that_is_too_wide_runs_off_the_edge_and_is_told_in_full():
    wide = Point(x=1.0, written="1", figure=over_seeds([0.0, 1.0]))
    chart = plot("k", "t", "q", "f", [Curve(name="c", points=(wide,))], [])
    assert chart.rows[0][3] == "\u22125.854 to +6.854"
    heights = [float(y) for y in re.findall(r'y[12]="([-\d.]+)"', chart.svg)]
    assert min(heights) >= 0
    assert (
        plot(
            "k", "t", "q", "f", [Curve(name="c", points=())], [Level(name="l", figure=wide.figure)]
        )
        is None
    )


def test_leakage_is_drawn_where_runs_were_audited(tmp_path):
    result = swept(tmp_path, ranks=(4,))
    assert charts.leakage_charts(result) == []
    assert "Not audited." in render(result)

    found = from_json(REPORT.read_text("utf-8")).leakage
    lower = max(bound.epsilon_lower for bound in found.whole if bound.label == "private")
    audited = [replace(r, report=replace(r.report, leakage=found)) for r in result.runs]
    seen = replace(result, runs=tuple(audited))
    (chart,) = charts.leakage_charts(seen)
    assert {row[2] for row in chart.rows} == {f"+{lower:.3f}"}
    assert lower > 0
    assert rows(seen)[0]["audited_epsilon_lower"] == lower
    assert "Audited lower bound against ε" in render(seen)


def test_the_page_says_the_best_setting_and_what_was_kept(tmp_path):
    result = swept(tmp_path)
    view = View(result)
    without = result.runs[0].without_privacy
    assert (
        "Of 8 settings, privacy.epsilon = 8.0, lora.rank = 8 gains most: +0.271" in view.statement
    )
    best = view.rows()[-1]
    assert best[3] == "+0.271"
    assert best[4] == "± 0.008"
    assert best[7] == f"{100 * 0.271 / without:.1f}\u202f%"
    assert view.claims
    assert "<script" not in render(result)


def test_names_from_data_are_escaped(tmp_path):
    result = swept(tmp_path, ranks=(4,))
    clients = tuple(
        replace(one, client=f"<b>{i}</b>") for i, one in enumerate(result.runs[0].report.clients)
    )
    runs = tuple(replace(r, report=replace(r.report, clients=clients)) for r in result.runs)
    page = render(replace(result, runs=runs))
    assert "<b>0</b>" not in page
    assert "&lt;b&gt;0&lt;/b&gt;" in page


def test_who_has_what_in_parts_by_label(tmp_path):
    result = swept(tmp_path, ranks=(4,), epsilons=(1.0,), seeds=(0,))
    (natural,) = holdings_charts(result)
    assert natural.columns == ("Client", "Records")
    folder = result.runs[0].folder
    folder.mkdir(parents=True)
    names = tuple(f"client-{i:05d}" for i in range(40))
    counts = tuple((i, 1, 1, 1, 1, 1) for i in range(40))
    (folder / "partition.json").write_text(
        Holdings(names, ("big", "a", "b", "c", "d", "e"), counts).to_json()
    )
    (dealt,) = holdings_charts(result)
    assert dealt.columns == ("Client", "big", "a", "b", "c", "others", "Records")
    assert dealt.rows[0] == ("client-00039", "39", "1", "1", "1", "2", "44")
    assert len(dealt.rows) == 40
    assert dealt.svg.count("client-000") == 24  # of forty


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_csv_has_a_row_a_run(tmp_path, seeds):
    result = swept(tmp_path, ranks=(4,), seeds=seeds)
    lines = to_csv(rows(result)).splitlines()
    assert len(lines) == 1 + 4 * len(seeds)
    assert lines[0].startswith("run,folder,privacy.epsilon,lora.rank,seed,trust,unit,epsilon")
