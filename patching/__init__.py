"""Change a model: from (source, target, tokens, metric) to a grid of effects."""
