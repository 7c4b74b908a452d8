"""Studies: a question, its Config, its cells, and what is concluded from them."""
