"""How wrong are decoded sequences: edit distances, error rates, and what was confused."""
