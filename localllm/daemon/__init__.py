"""Keeps models alive: worker processes, residency, reply streams, lifecycle."""
