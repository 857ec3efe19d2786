"""Answers that fit a grammar or a JSON schema, complete within the budget."""
