"""QLoRA that teaches a model to end its answers."""
