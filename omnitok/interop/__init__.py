"""Tokenizers published by others, run by our own parts from their own weights."""
