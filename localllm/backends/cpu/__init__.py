"""The CPU backend: the decoder recorded once, replayed by native code."""
