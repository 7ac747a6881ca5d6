"""Integer geometry of volumes: boxes, grids, pyramids. No numpy, no input or output."""
