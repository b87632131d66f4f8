"""How cost grows: the GRU's two forms over its steps, networks over slices, crop, batch and width."""
