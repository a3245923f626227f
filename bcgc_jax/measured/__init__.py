"""From a file of measured times to a law."""
