"""Predictions on videos and cameras, on large images by tiles, and on many images by several processes."""
