"""Arrays in, arrays out: the only place that calls compiled algorithms on voxels."""
