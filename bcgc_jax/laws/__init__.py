"""Laws of one worker's cycle time."""
