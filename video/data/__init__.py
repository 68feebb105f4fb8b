"""Training and validation clips from folders, lists, tars and memory-mapped corpora."""
