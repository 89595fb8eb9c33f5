"""Measuring ourselves."""
