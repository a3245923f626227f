"""What workers do, when that is enough, and how long it takes."""
