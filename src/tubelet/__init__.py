"""V-JEPA 2.1: self-supervised pre-training on videos and images that yields dense features."""
