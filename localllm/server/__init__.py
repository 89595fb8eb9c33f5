"""The HTTP end of the wire."""
