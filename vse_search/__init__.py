"""Finds your own images by captions: index, engines, queries, server."""
