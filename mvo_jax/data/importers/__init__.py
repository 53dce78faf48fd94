"""Readers of what hospitals and public data sets have on disk, one file a format."""
