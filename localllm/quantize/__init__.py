"""Float weights to blocks."""
