"""One script per question; see README.md for the recorded answers."""
