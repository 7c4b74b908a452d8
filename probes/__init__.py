"""Read a model: from (Model, tokens) to a Result."""
