"""Reads run folders and writes the report, from the records on disk: no torch, no ray."""
