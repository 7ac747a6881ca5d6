"""Where bytes and voxels live: folders on disk or in buckets, and the layers in them."""
