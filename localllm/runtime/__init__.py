"""A name becomes a ready engine."""
