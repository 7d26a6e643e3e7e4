"""The audit: what leaks, measured from scores alone. No model, no network, no torch.

Each measure is frozen data, raw scores and what they are scores of, and computes its own figures.
`client/probe` runs the models that make the scores; whoever believes neither recomputes every
figure with `verify_bundle`.

A measure says what it could have shown: a ceiling, or "no power". A lower bound of 0 beside a
ceiling below the claim says nothing in the claim's favour.
"""

from sordino.privacy.audit.attacks import (
    fit_offline_scale,
    loss_score,
    mean_log_probability,
    min_k_plus_score,
    min_k_score,
    recall_score,
    reference_score,
    rmia_score,
    zlib_score,
)
from sordino.privacy.audit.bounds import (
    Curve,
    f_dp_bound,
    f_dp_p_value,
    gaussian_estimate,
    rigorous_bound,
    steinke_bound,
    steinke_p_value,
)
from sordino.privacy.audit.bundle import Manifest, sign_bundle, verify_bundle
from sordino.privacy.audit.checking import (
    RED_ALARM,
    Findings,
    check_bounds,
    claim_defects,
    coin_defects,
    decode_claim,
)
from sordino.privacy.audit.checks import LEVEL
from sordino.privacy.audit.commitments import (
    Commitments,
    Opening,
    canary_commitment,
    check_openings,
    coins,
    commit,
    contribution_commitment,
    draw_contributions,
    draw_openings,
)
from sordino.privacy.audit.confounds import Confounds, confounds, count_doubles
from sordino.privacy.audit.curves import GaussianCurve, PointsCurve, claimed_curve
from sordino.privacy.audit.exposure import (
    Exposure,
    exposure,
    exposure_p_value,
    rank_of,
    sampled_exposure,
)
from sordino.privacy.audit.extraction import (
    Extraction,
    Identities,
    Suffix,
    Value,
    discoverable,
    holds,
    matching_tokens,
    queries_needed,
)
from sordino.privacy.audit.guessing import Counts, Guessing, count, split_rule
from sordino.privacy.audit.intervals import clopper_pearson, wilson
from sordino.privacy.audit.inversion import Inversion, SpanCheck, numerical_rank, span_check
from sordino.privacy.audit.leakage import Leak, best, leak, readings
from sordino.privacy.audit.membership import Membership
from sordino.privacy.audit.one_run import ADVERSARIES, OneRun
from sordino.privacy.audit.prompts import CRITERIA, FLOOR, Attempt, PromptLeakage, Stage
from sordino.privacy.audit.ranking import AtRate, auc, roc, true_positives
from sordino.privacy.audit.records import (
    MEASURES,
    Audit,
    Entry,
    Measure,
    decode_audit,
    encode_audit,
    measured,
    mismatches,
    recompute,
    versions,
)
from sordino.privacy.audit.releases import likelihood_score
from sordino.privacy.audit.signing import make_auditor_key, public_key_of
from sordino.privacy.audit.worlds import (
    Neighbours,
    Noise,
    TwoWorlds,
    noise_p_value,
    two_worlds_bound,
)

__all__ = [
    "ADVERSARIES",
    "CRITERIA",
    "FLOOR",
    "LEVEL",
    "MEASURES",
    "RED_ALARM",
    "AtRate",
    "Attempt",
    "Audit",
    "Commitments",
    "Confounds",
    "Counts",
    "Curve",
    "Entry",
    "Exposure",
    "Extraction",
    "Findings",
    "GaussianCurve",
    "Guessing",
    "Identities",
    "Inversion",
    "Leak",
    "Manifest",
    "Measure",
    "Membership",
    "Neighbours",
    "Noise",
    "OneRun",
    "Opening",
    "PointsCurve",
    "PromptLeakage",
    "SpanCheck",
    "Stage",
    "Suffix",
    "TwoWorlds",
    "Value",
    "auc",
    "best",
    "canary_commitment",
    "check_bounds",
    "check_openings",
    "claim_defects",
    "claimed_curve",
    "clopper_pearson",
    "coin_defects",
    "coins",
    "commit",
    "confounds",
    "contribution_commitment",
    "count",
    "count_doubles",
    "decode_audit",
    "decode_claim",
    "discoverable",
    "draw_contributions",
    "draw_openings",
    "encode_audit",
    "exposure",
    "exposure_p_value",
    "f_dp_bound",
    "f_dp_p_value",
    "fit_offline_scale",
    "gaussian_estimate",
    "holds",
    "leak",
    "likelihood_score",
    "loss_score",
    "make_auditor_key",
    "matching_tokens",
    "mean_log_probability",
    "measured",
    "min_k_plus_score",
    "min_k_score",
    "mismatches",
    "noise_p_value",
    "numerical_rank",
    "public_key_of",
    "queries_needed",
    "rank_of",
    "readings",
    "recall_score",
    "recompute",
    "reference_score",
    "rigorous_bound",
    "rmia_score",
    "roc",
    "sampled_exposure",
    "sign_bundle",
    "span_check",
    "split_rule",
    "steinke_bound",
    "steinke_p_value",
    "true_positives",
    "two_worlds_bound",
    "verify_bundle",
    "versions",
    "wilson",
    "zlib_score",
]
