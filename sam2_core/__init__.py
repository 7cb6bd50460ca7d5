"""SAM 2 in plain PyTorch: promptable segmentation and bounded-memory tracking of a live stream."""
