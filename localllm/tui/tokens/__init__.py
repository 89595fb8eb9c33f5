"""The Tokens screen and its parts."""
