"""Geographic computations: distances, densities, location targets, accuracy."""
