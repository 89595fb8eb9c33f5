"""The rows of families: one module for each way to build a model. `families.py` joins them."""
