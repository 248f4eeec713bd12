"""What is followed through time: points and objects."""
