"""Demo: camera, node, prompter and recorder as separate processes."""
