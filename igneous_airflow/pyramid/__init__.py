"""Coarser mips of a layer: laid out before the work, made while voxels pass, counted after it.

Used by every stage that writes voxels.
"""
