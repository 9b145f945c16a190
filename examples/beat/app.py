"""Celery, as in its own guide for Django."""

from celery import Celery

app = Celery("recipes")
app.config_from_object("django.conf:settings", namespace="CELERY")
