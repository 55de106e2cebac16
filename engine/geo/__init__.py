"""What places mean: targets, distances, densities, accuracy, files of places."""
