"""The token inspector and its parts."""
