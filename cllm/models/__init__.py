"""Models: the only places that know an architecture."""
