"""A shop. Each module shows one feature of goscope_django at something that a shop needs; ``start`` shows them all."""
