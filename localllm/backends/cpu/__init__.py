"""The CPU backend: the decoder recorded once, replayed by native code. Open it through `library` and `backend`."""
