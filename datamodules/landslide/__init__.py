"""Data of the landslide family: rasters, channels, splits, tiles."""
