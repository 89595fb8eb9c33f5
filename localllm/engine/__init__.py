"""Who runs next: pages, sequences, the scheduler, and the seam to the backends."""
