"""Uncertainty with its unit: how many independent things stand behind a number. Import from the modules."""
