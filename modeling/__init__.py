"""Models, one flat folder per family: what ships to the Hub with the weights."""
