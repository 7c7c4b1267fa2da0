"""What lies behind the figures: gradients, mistakes, surfaces, drift. Data in, data out; nothing here writes a file."""
