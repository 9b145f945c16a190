"""A shop. Each module uses one feature of goscope_django for something that a shop needs; ``start`` shows them all."""
