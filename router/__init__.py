"""Front doors, worker sessions and the life of a request."""
