"""One short file per method, made of the primitives of `video.compress`."""
