"""Training: clips, prompts drawn from masks, the losses of SAM 2, and the run from clips to weights."""
