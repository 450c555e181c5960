"""The model: configuration, the composite, its processor, and what trains when."""
