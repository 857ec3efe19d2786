"""Token ids into text and back."""
