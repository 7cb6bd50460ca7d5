"""Pictures of masks and labels."""
