"""Work on one camera: images and prompts in, frames and answers out, and the thread that owns the model."""
