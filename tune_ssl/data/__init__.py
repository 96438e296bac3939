"""Data: domains, splits, batches and views."""
