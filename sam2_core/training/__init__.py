"""Training: synthetic clips, prompts as a user gives them, the losses of SAM 2, and the loop."""
