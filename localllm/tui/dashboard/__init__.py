"""The Dashboard screen and its parts."""
