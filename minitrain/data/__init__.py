"""Data sets: text for now."""
