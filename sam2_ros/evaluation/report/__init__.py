"""Files that present a run: report, video, bag and training data."""
