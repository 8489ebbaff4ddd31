"""What the measuring scripts share: their command line, their results, the training runs that they compare."""
