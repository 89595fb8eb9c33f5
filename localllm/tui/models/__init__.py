"""The Models screen and its parts."""
