"""Where voxels come from that are in no layer yet: pictures, arrays in files, build chunks.

One file for each family of formats; `opening.py` looks at an address and chooses. Used by ingest.
"""
