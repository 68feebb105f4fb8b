"""Training: a run is a pure function of its config, its data and the step."""
