"""Scripts of the repository: the matrix of versions, the release, the hooks of the documentation site."""
