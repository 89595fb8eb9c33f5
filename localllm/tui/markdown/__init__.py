"""Markdown as lines, while it grows."""
