"""A page that is made by one process for all, and kept."""

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.utils.html import format_html

from goscope_django.decorators import cached_page, single_flight
from page.models import Product


# A minute it is new. For an hour more the old one serves while one caller makes the new one.
@cached_page(60, stale=3600, tags=("product:{pk}",))
@single_flight()  # where there is no page at all, one makes it for all who ask at the same time
def product(request, pk):
    return HttpResponse(render(get_object_or_404(Product, pk=pk)))


def render(found):
    return format_html("<h1>{}</h1>", found.name)
