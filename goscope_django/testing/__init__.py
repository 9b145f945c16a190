"""For the tests of projects that use goscope_django, and for whoever writes another adapter.

``plugin`` is pytest's (registered by itself): each xdist worker gets a key prefix of its own. ``conformance`` holds the
suites of the contracts; a new adapter subclasses them.
"""
