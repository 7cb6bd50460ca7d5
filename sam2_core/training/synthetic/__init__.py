"""Synthetic clips: textures, sprites, scenes and their drawing."""
