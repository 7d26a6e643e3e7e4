"""The parts of an audit: each runs the model and returns measures, scores and all."""
