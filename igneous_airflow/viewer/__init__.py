"""Neuroglancer for layers on disk and in buckets; used by the command line and by the plugin.

The client is the built one inside the `neuroglancer` package, so that no other server is needed;
chunks are streamed by us, with the credentials of the process, so that private buckets can be seen.
"""
