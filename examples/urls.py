"""Where the recipes that have views are found."""

from django.urls import path
from page.views import product
from probes.views import live, ready
from webhook.views import receive

urlpatterns = [
    path("webhook/", receive),
    path("products/<int:pk>/", product),
    path("live/", live),
    path("ready/", ready),
]
