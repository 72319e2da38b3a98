"""Images as they come: folders, parquet, the hub."""
