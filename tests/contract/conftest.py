"""What several contracts are held against."""

import pytest
from support import postgres


@pytest.fixture(scope="session")
def databases():
    """Gives a new PostgreSQL database's URL with each call."""
    reason = postgres.why_not()
    if reason:
        pytest.skip(reason)
    with postgres.server() as database:
        yield database
