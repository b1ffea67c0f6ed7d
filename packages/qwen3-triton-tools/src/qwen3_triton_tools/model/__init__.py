"""From a model of the hub to a folder that Triton serves, and the proof that it serves it right."""
