"""Hardware behind the seam of engine.step and models.ops."""
