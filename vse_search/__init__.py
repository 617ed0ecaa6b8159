"""Finds a person's own pictures by sentence: index, engines, queries, server."""
