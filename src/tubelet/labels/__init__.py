"""Label tables: labels of one's own for videos and images, in any common form."""
