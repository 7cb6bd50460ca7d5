"""Building blocks of SAM 2, one file each. Parameter names are those of the published checkpoints."""
