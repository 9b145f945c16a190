"""The demo: a Django project with a small shop that uses every feature of goscope_django."""
