"""Runs the model for all callers."""
