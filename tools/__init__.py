"""The command line and its scripts."""
