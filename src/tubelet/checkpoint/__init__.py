"""Reading and writing of weights, one module for each file format."""
