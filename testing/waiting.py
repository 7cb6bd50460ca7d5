"""How long tests wait for what has to come: only ever used up when something is broken, however busy the machine is."""
PATIENCE = 120.0  # seconds
PROMPT_TIMEOUT = 60.0  # seconds that a prompt waits for its image, where a test does not say
