"""For the tests of projects that use goscope_django, and for authors of other adapters.

``plugin`` is a pytest plugin that registers itself: each xdist worker gets its own key prefix. ``conformance`` has one
test suite for each contract, which a new adapter subclasses.
"""
