"""Names that only checkpoints of single families have: modules as in `family_rows`. `names.py` joins them."""
