"""The program measured against its limits. Every figure is a ratio taken side by side in one run."""
