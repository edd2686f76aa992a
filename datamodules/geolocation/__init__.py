"""Photographs with coordinates, regions and geocells."""
