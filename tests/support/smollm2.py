"""The real model, from the cache or fetched: for slow tests."""

import os
from pathlib import Path

from sordino.client.model.fetch import fetch
from sordino.client.model.store import ModelFiles, cache_root, resolve_model
from sordino.core.config import ModelConfig
from sordino.core.errors import ModelError


def smollm2_files() -> ModelFiles:
    """Where SmolLM2-135M-Instruct lies."""
    cache = Path(os.environ.get("SORDINO_TEST_CACHE") or cache_root())
    try:
        return resolve_model(ModelConfig(name="smollm2-135m"), cache)
    except ModelError:
        fetch("smollm2-135m", cache, lambda *_: None)
        return resolve_model(ModelConfig(name="smollm2-135m"), cache)
