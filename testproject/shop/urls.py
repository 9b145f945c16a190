"""The shop's pages."""

from __future__ import annotations

from django.urls import path

from testproject.shop import basket, catalogue, importing, paying, report, start, stock, supplier, trouble

urlpatterns = [
    path("", start.start, name="start"),
    path("catalogue/", catalogue.catalogue, name="catalogue"),
    path("catalogue/forget/", catalogue.forget, name="forget"),
    path("prices/", catalogue.prices, name="prices"),
    path("basket/", basket.basket, name="basket"),
    path("basket/add/", basket.add, name="add"),
    path("pay/", paying.pay, name="pay"),
    path("supplier/ask/", supplier.ask, name="ask"),
    path("supplier/switch/", supplier.switch, name="switch"),
    path("supplier/quote/<slug:sku>/", supplier.quote, name="quote"),
    path("report/", report.report, name="report"),
    path("stock/", stock.correct, name="correct"),
    path("stock/stale/", stock.stale, name="stale"),
    path("trouble/hold/", trouble.hold, name="hold"),
    path("trouble/stall/", trouble.stall, name="stall"),
    path("trouble/fail/", trouble.fail, name="fail"),
    path("import/", importing.start, name="import"),
    path("import/kill/", importing.kill, name="kill"),
    path("import/state.json", importing.state_json, name="import-state"),
]
