"""3D assets."""
