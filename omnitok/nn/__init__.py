"""Parts of the shared transformer."""
