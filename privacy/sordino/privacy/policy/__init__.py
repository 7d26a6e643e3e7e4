"""What a device's owner allows, signed, and checked before anything is touched.

A policy bounds every request (`check_request`) and, through filters that `plan` makes of its caps,
everything that was ever charged. A coordinator can tighten, never loosen. A device without a policy
file has `BUILT_IN`, which is strict: noise on the device, small steps, one lifetime cap.
"""

from typing import Final

from sordino.privacy.policy.check import REASONS, Conditions, Request, check_request
from sordino.privacy.policy.rules import Cap, Policy, Work, parse_policy, policy_toml
from sordino.privacy.policy.signing import (
    load_policy,
    make_owner_key,
    read_unsigned,
    sign_policy,
)

BUILT_IN: Final = Policy()

__all__ = [
    "BUILT_IN",
    "REASONS",
    "Cap",
    "Conditions",
    "Policy",
    "Request",
    "Work",
    "check_request",
    "load_policy",
    "make_owner_key",
    "parse_policy",
    "policy_toml",
    "read_unsigned",
    "sign_policy",
]
