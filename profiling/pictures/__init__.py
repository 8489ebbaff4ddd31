"""Pictures: from what a script wrote to a PNG. `draw.py` says which result has which."""
