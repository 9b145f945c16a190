"""A small Django site for tests that need several server processes; its settings come from the environment.

A module ``views_<feature>.py`` in this folder is found by ``urls.py`` and adds its ``urlpatterns``.
"""
