"""Answers held to a schema, complete within the budget."""
