"""The Chat screen and its parts."""
