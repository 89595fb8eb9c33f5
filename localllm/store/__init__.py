"""Model files on disk: names, catalog, sources, manifests."""
