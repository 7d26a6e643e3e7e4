"""The parts of generation: a model made ready, its cache, its forward, and sampling."""
