"""What a run leaves behind for people: report.json, report.html and the adapter's model card.

`report.json` is the source: the HTML and the card are made from it and from nothing else.
"""

from sordino.server.report.card import BaseCard, model_card, write_card
from sordino.server.report.claim import claim_of_run
from sordino.server.report.codec import from_json, to_json
from sordino.server.report.figures import measured_gain
from sordino.server.report.html import render_html, render_page, write_report
from sordino.server.report.leakage import Leakage
from sordino.server.report.schema import (
    KNOWN_TO_A_SIMULATION,
    PRIVATE_TO_A_COORDINATOR,
    SCHEMA_VERSION,
    ClientFigures,
    Cost,
    Energy,
    Epsilon,
    Guarantee,
    MetricFigures,
    Noise,
    OtherUnit,
    RoundFigures,
    Run,
    RunModel,
    RunReport,
    SecondOpinion,
    Utility,
    UtilityFigures,
)

__all__ = [
    "KNOWN_TO_A_SIMULATION",
    "PRIVATE_TO_A_COORDINATOR",
    "SCHEMA_VERSION",
    "BaseCard",
    "ClientFigures",
    "Cost",
    "Energy",
    "Epsilon",
    "Guarantee",
    "Leakage",
    "MetricFigures",
    "Noise",
    "OtherUnit",
    "RoundFigures",
    "Run",
    "RunModel",
    "RunReport",
    "SecondOpinion",
    "Utility",
    "UtilityFigures",
    "claim_of_run",
    "from_json",
    "measured_gain",
    "model_card",
    "render_html",
    "render_page",
    "to_json",
    "write_card",
    "write_report",
]
