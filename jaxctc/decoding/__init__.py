"""From scores to label sequences: best path, beams, language models."""
