"""One run: its folder, and what is kept there."""
