"""What the live feed has told, as one state; no widgets."""
