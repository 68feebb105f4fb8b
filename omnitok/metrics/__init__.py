"""Scores of reconstructions and of codes."""
