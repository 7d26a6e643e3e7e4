"""What another library's accountants say of a report's steps, in a sentence."""

from __future__ import annotations

from sordino.privacy.accounting import PoissonSampledGaussian, compare, epsilon_pld, epsilon_rdp
from sordino.server.report.schema import RunReport

_ORDERS = tuple(range(2, 64))  # at whole orders both libraries' RDP must be equal


def second_opinion(report: RunReport) -> str:
    """Whether Opacus' figures bear out ours for the run's noised steps, or by how much they don't.

    Both are of the training steps alone: whatever else a run may release, Opacus didn't count it.
    Empty where no figures were taken.
    """
    opinion, noise = report.guarantee.second_opinion, report.noise
    delta, sigma = report.guarantee.delta, noise.noise_multiplier
    prv, rdp = opinion.opacus_prv, opinion.opacus_rdp
    if prv is None or rdp is None or delta is None or sigma is None:
        return ""
    steps = PoissonSampledGaussian(
        sampling_rate=noise.sampling_rate, noise_multiplier=sigma, steps=noise.steps
    )
    return compare(
        pld=epsilon_pld([steps], delta),
        rdp=epsilon_rdp([steps], delta, orders=_ORDERS),
        other_prv=prv,
        other_rdp=rdp,
        name="Opacus",
    ).statement
